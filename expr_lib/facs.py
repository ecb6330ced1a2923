"""Action units (AUs) of the Facial Action Coding System, in which this project describes expressions.

Intensities are floats on the FACS scale: 0 = absent, 1..5 = the letters A (trace) to E (maximum).
Source: Ekman, Friesen & Hager, *FACS: The Manual* (2002); the mapping to ARKit blend shapes is our choice.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_INTENSITY = 5.0
"""Intensity E of FACS; every AU lies in `[0, MAX_INTENSITY]`."""

PRESENT_AT = 1.0
"""An AU counts as present from this intensity upwards (FACS A, a trace)."""


@dataclass(frozen=True)
class ActionUnit:
    """One AU with its FACS name, the face region that it moves, and the ARKit shapes that render it.

    `shapes` maps an ARKit blend shape to its weight at intensity E (above 1 if the shape alone is weaker than E);
    `*` stands for both `Left` and `Right`.
    """

    name: str
    muscle_action: str
    region: str  # "brow", "eye", "nose", "cheek" or "mouth"
    shapes: dict[str, float]


ACTION_UNITS = (
    ActionUnit("AU1", "inner brow raiser", "brow", {"browInnerUp": 1.7}),
    ActionUnit("AU2", "outer brow raiser", "brow", {"browOuterUp*": 1.4}),
    ActionUnit("AU4", "brow lowerer", "brow", {"browDown*": 1.5}),
    ActionUnit("AU5", "upper lid raiser", "eye", {"eyeWide*": 1.5}),
    ActionUnit("AU6", "cheek raiser", "cheek", {"cheekSquint*": 1.9}),
    ActionUnit("AU7", "lid tightener", "eye", {"eyeSquint*": 1.5}),
    ActionUnit("AU9", "nose wrinkler", "nose", {"noseSneer*": 1.8}),
    ActionUnit("AU10", "upper lip raiser", "mouth", {"mouthUpperUp*": 1.4}),
    ActionUnit("AU12", "lip corner puller", "mouth", {"mouthSmile*": 1.0}),
    ActionUnit("AU14", "dimpler", "mouth", {"mouthDimple*": 1.7}),
    ActionUnit("AU15", "lip corner depressor", "mouth", {"mouthFrown*": 1.5}),
    ActionUnit("AU17", "chin raiser", "mouth", {"mouthShrugLower": 2.0}),
    ActionUnit("AU20", "lip stretcher", "mouth", {"mouthStretch*": 1.7}),
    ActionUnit("AU23", "lip tightener", "mouth", {"mouthPress*": 1.4}),
    ActionUnit("AU25", "lips part", "mouth", {"mouthLowerDown*": 1.1, "mouthUpperUp*": 0.4}),
    ActionUnit("AU26", "jaw drop", "mouth", {"jawOpen": 0.85}),
    ActionUnit("AU43", "eyes closed", "eye", {"eyeBlink*": 1.0}),
)

AU_NAMES = tuple(unit.name for unit in ACTION_UNITS)
