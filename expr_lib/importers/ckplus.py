"""CK+: posed expressions, 123 people, sequences from the neutral face to the peak; the peak is FACS-coded.

Source of the format: Lucey et al., *The Extended Cohn-Kanade Dataset (CK+)*, CVPR Workshops 2010, and its ReadMe.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from expr_lib.importers.labels import LETTERS, intensity
from expr_lib.importers.source import PRESENT, UNKNOWN, LabelledImage, Report, Tree, au_name, parse_number

FRAME = r"(s\d{3}_\d{3})_(\d{8})"
LAST_AU = 46
"""Higher codes are positions of head and eyes, not action units of the face."""


def labelled_images(tree: Tree, report: Report) -> Iterator[LabelledImage]:
    """`FACS/S005/001/S005_001_00000011_facs.txt`, lines `AU intensity`: the last frame of a sequence.

    The coders listed every AU that they saw, so AUs that are not in the file are 0, or unknown if a line of the file
    cannot be read. Intensity 0 means present without an intensity (`PRESENT`). The first frame of a coded sequence is
    the neutral face, with all AUs 0. Both images are aligned by their landmarks.
    """

    def frame_of(match: re.Match[str]) -> tuple[str, int]:
        return match[1], int(match[2])

    images: dict[str, dict[int, str]] = {}
    for (sequence, frame), rel in tree.one_each(FRAME + r"\.(?:png|jpe?g)", frame_of, "image of a frame").items():
        images.setdefault(sequence, {})[frame] = rel
    points = tree.one_each(FRAME + r"_landmarks\.txt", frame_of, "landmarks of a frame")
    files = tree.one_each(FRAME + r"_facs\.txt", frame_of, "label file of a frame")
    coded = {where: codes(tree, file, report) for where, file in files.items()}
    names = {name for au, _ in coded.values() for name in au}
    for (sequence, frame), (au, whole) in coded.items():
        file, person, film = files[sequence, frame], sequence[:4].upper(), images.get(sequence, {})
        if frame not in film:
            report.left_out("label without an image", file, 1, f"{sequence.upper()}_{frame:08d}")
            continue
        first, absent = min(film), 0.0 if whole else UNKNOWN
        if not au and not whole:
            report.left_out("label file without a label", file)
        else:
            place = landmarks_of(tree, points.get((sequence, frame)), report)
            yield LabelledImage(
                film[frame], person, dict.fromkeys(names, absent) | au, (file, 1), points=place, take=sequence
            )
        if first > 1:
            report.note("sequence whose first frame is not there, so no neutral face is taken", film[first])
        elif first != frame:
            place = landmarks_of(tree, points.get((sequence, first)), report)
            yield LabelledImage(film[first], person, dict.fromkeys(names, 0.0), (file, 1), points=place, take=sequence)
            report.note("first frame of a coded sequence, taken as neutral")


def codes(tree: Tree, file: str, report: Report) -> tuple[dict[str, float], bool]:
    """Lines `AU intensity`, both written like 9.0000000e+00 -> intensities, and whether all lines could be read."""
    au: dict[str, float] = {}
    rows = list(tree.rows(file, ";\t "))
    lost = len(rows) == 0  # the file is empty or unreadable
    for line, row in rows:
        try:
            unit, _ = parse_number(row[0]), row[1].lower() in LETTERS or parse_number(row[1])
            if len(row) != 2:
                raise ValueError
        except (ValueError, IndexError):
            report.left_out("line that is not AU and intensity", file, line, " ".join(row)[:40])
            lost = True
            continue
        name = au_name(f"{unit:g}") or ""
        if not unit.is_integer() or unit < 1:
            report.left_out("unknown action unit", file, line, f"found {row[0]}")
            lost = True
        elif unit > LAST_AU:
            report.note("code of a head or eye position, not used", file, line, f"{unit:g}")
        elif name in au:
            report.left_out("second label of an action unit", file, line, f"{unit:g}: {name} is there already")
        else:
            au[name] = intensity(row[1], name, report, file, line) or PRESENT
    return au, not lost


def landmarks_of(tree: Tree, file: str | None, report: Report) -> np.ndarray | None:
    """68 lines `x y` -> (68, 2); None if there is no such file."""
    if file is None:
        return None
    try:
        cells = [[parse_number(cell) for cell in row] for _, row in tree.rows(file, ";\t ")]
        found = np.array(cells).clip(-1e6, 1e6).astype(np.float32)
    except ValueError:
        found = np.zeros(0, np.float32)
    if found.shape != (68, 2):
        report.note("landmarks that are not 68 pairs, not used", file)
        return None
    return found
