"""CK+: posed expressions, 123 people, sequences from the neutral face to the peak; the peak is FACS-coded.

Source of the format: Lucey et al., *The Extended Cohn-Kanade Dataset (CK+)*, CVPR Workshops 2010, and its ReadMe.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from expr_lib.facs import MAX_INTENSITY
from expr_lib.importers.source import PRESENT, Face, Report, Tree, number

LAST_AU = 46
"""Higher codes are head and eye positions, no action units of the face."""


def faces(tree: Tree, report: Report) -> Iterator[Face]:
    """``FACS/S005/001/S005_001_00000011_facs.txt``, lines ``AU intensity``: the last frame of a sequence.

    Coders wrote down every AU they saw, so an AU that is not in the file is 0. Intensity 0 means present, not graded:
    ``PRESENT``. The first frame of a coded sequence is the neutral face: all 0. The landmarks align both.
    """
    sequences: dict[str, dict[int, str]] = {}
    for rel, match in tree.matching(r"(s\d{3}_\d{3})_(\d{8})\.(?:png|jpe?g)"):
        sequences.setdefault(match[1], {})[int(match[2])] = rel
    points = {(match[1], int(match[2])): rel for rel, match in tree.matching(r"(s\d{3}_\d{3})_(\d{8})_landmarks\.txt")}
    coded = {}
    for file, match in tree.matching(r"(s\d{3}_\d{3})_(\d{8})_facs\.txt"):
        coded[match[1], int(match[2])] = (file, codes(tree, file, report))
    names = {name for _, au in coded.values() for name in au}
    for (sequence, frame), (file, au) in coded.items():
        images = sequences.get(sequence, {})
        if frame not in images:
            report.left_out("label without an image", file, 1, f"{sequence.upper()}_{frame:08d}")
            continue
        peak, person = dict.fromkeys(names, 0.0) | au, sequence[:4].upper()
        for number_, labels in ((min(images), dict.fromkeys(names, 0.0)), (frame, peak)):
            if number_ == frame and labels is not peak:
                continue  # a sequence of one image: it is the peak
            place = landmarks_of(tree, points.get((sequence, number_)), report)
            yield Face(images[number_], person, labels, (file, 1), points=place)
        if min(images) != frame:
            report.note("first frame of a coded sequence, taken as neutral")


def codes(tree: Tree, file: str, report: Report) -> dict[str, float]:
    """Lines ``AU intensity``, both written like 9.0000000e+00."""
    au: dict[str, float] = {}
    for line, row in tree.rows(file):
        try:
            unit, strength = (number(cell) for cell in row)
        except ValueError:
            report.left_out("line that is not AU and intensity", file, line, " ".join(row)[:40])
            continue
        if not unit.is_integer() or unit < 1:
            report.left_out("unknown action unit", file, line, f"found {row[0]}")
        elif unit > LAST_AU:
            report.note("code of a head or eye position, not used", file, line, f"{unit:g}")
        elif not 0 <= strength <= MAX_INTENSITY:
            name = f"AU{unit:g}"
            report.missing("label that is no intensity", file, line, f"{name}: found {row[1]!r}, expected 0 to 5")
            au[name] = float("nan")
        else:
            au["AU43" if unit == 45 else f"AU{unit:g}"] = strength or PRESENT
    return au


def landmarks_of(tree: Tree, file: str | None, report: Report) -> np.ndarray | None:
    """68 lines ``x y`` -> (68, 2); None where there is no such file."""
    if file is None:
        return None
    try:
        found = np.array([[number(cell) for cell in row] for _, row in tree.rows(file)], np.float32)
    except ValueError:
        found = np.zeros(0, np.float32)
    if found.shape != (68, 2):
        report.note("landmarks that are not 68 pairs, not used", file)
        return None
    return found
