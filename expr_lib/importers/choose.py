"""The choice among several faces in a photograph, as options of all commands that find faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expr_lib.errors import InputError

if TYPE_CHECKING:
    import numpy as np

MAX_FACE = 1000
"""Largest number of a face in a photograph."""


@dataclass(frozen=True)
class Choice:
    """The choice among several faces in a photograph."""

    largest: bool = False  # of several faces in a photograph take the largest
    face: int = 0  # of several faces take this one, counted from 1 from left to right

    def __post_init__(self) -> None:
        if not 0 <= self.face <= MAX_FACE:
            raise InputError(f"face: found {self.face}, expected 1 to {MAX_FACE}, or 0 for no choice")
        if self.largest and self.face:
            raise InputError(f"face: found {self.face} together with --largest, expected one of the two")


def chosen(found: list[np.ndarray], choice: Choice) -> np.ndarray:
    """The chosen one of several faces, given by their landmarks (68, 2); `InputError` if the choice is not clear."""
    if len(found) == 1:
        return found[0]
    if choice.face > len(found):
        raise InputError(f"found {len(found)} faces, expected at least {choice.face} for --face {choice.face}")
    if choice.face:
        return sorted(found, key=lambda points: float(points[:, 0].mean()))[choice.face - 1]
    area = [float((points.max(0) - points.min(0)).prod()) for points in found]
    second, largest = sorted(area)[-2:]
    if not choice.largest and largest < 4 * second:
        raise InputError(
            f"found {len(found)} faces, expected one: choose with --largest or --face N, from left to right"
        )
    return found[area.index(largest)]
