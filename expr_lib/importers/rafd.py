"""RaFD: 67 people, eight posed expressions, which are part of the file names.

The pictures were not coded: the labels are the AUs that the models were asked to show. Source: Langner et al.,
*Presentation and validation of the Radboud Faces Database*, Cognition & Emotion 24(8), 2010; target codes and their
letters by Hawk & van der Schalk. A range of letters becomes its middle, a code without a letter becomes `PRESENT`.
"""

from __future__ import annotations

from collections.abc import Iterator

from expr_lib.importers.source import PRESENT, UNKNOWN, LabelledImage, Report, Tree

TARGETS: dict[str, dict[str, float]] = {
    "neutral": {},
    "angry": {"AU4": 4, "AU5": 4, "AU7": PRESENT, "AU17": PRESENT, "AU23": UNKNOWN, "AU24": UNKNOWN},  # 23 or 24
    "contemptuous": {"AU14": PRESENT},  # on one side
    "disgusted": {"AU9": PRESENT, "AU10": PRESENT, "AU25": PRESENT},
    "fearful": {"AU1": PRESENT, "AU2": PRESENT, "AU4": PRESENT, "AU5": 4.5, "AU20": PRESENT, "AU25": PRESENT},
    "happy": {"AU6": PRESENT, "AU12": 4, "AU25": PRESENT},
    "sad": {"AU1": PRESENT, "AU4": PRESENT, "AU15": 2, "AU17": PRESENT},
    "surprised": {"AU1": PRESENT, "AU2": PRESENT, "AU5": 1.5, "AU26": PRESENT},
}
NAMES = sorted({name for au in TARGETS.values() for name in au}, key=lambda name: int(name[2:]))


def labelled_images(tree: Tree, report: Report) -> Iterator[LabelledImage]:
    """`Rafd090_01_Caucasian_female_angry_frontal.jpg`; frontal cameras (090) only."""
    pattern = r"rafd(\d{3})_(\d+)_[a-z]+_(?:fe)?male_([a-z]+)_(?:frontal|left|right)\.(?:jpe?g|png)"
    for rel, match in tree.matching(pattern):
        angle, person, expression = match.groups()
        if angle != "090":
            report.left_out("camera not in front of the face", rel, 0, f"{angle} degrees, expected 090")
        elif expression not in TARGETS:
            report.left_out("unknown expression", rel, 0, f"{expression}, expected one of {', '.join(TARGETS)}")
        else:
            yield LabelledImage(
                rel,
                person.zfill(2),
                dict.fromkeys(NAMES, 0.0) | TARGETS[expression],
                (rel, 0),
                take=f"{person} {angle}",
            )
