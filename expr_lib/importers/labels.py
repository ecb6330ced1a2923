"""Cells of label files -> intensities and landmarks; invalid cells become NaN, with a line in the report."""

from __future__ import annotations

import numpy as np

from expr_lib.facs import MAX_INTENSITY
from expr_lib.importers.source import PRESENT, UNKNOWN, Report, au_name, parse_number

LETTERS = {letter: float(i) for i, letter in enumerate("abcde", 1)}
"""FACS: A is a trace, E the maximum."""
BESIDE = 0.5
"""Intensities up to this much outside 0 to 5 are clipped, with a note in the report. Our choice."""
NOTHING = ("", "nan", "n/a", "na", "none", "null")

MESH = 468
"""Number of points of MediaPipe's face mesh, without the ten of the irises."""
DLIB_OF_MESH = (
    127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 397, 361, 323, 454, 356,  # the contour
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,  # the brows
    168, 197, 5, 4, 75, 97, 2, 326, 305,  # the nose
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # the eyes
    61, 39, 37, 0, 267, 269, 291, 321, 314, 17, 84, 91, 78, 82, 13, 312, 308, 317, 14, 87,  # the mouth
)  # fmt: skip
"""The points of the face mesh nearest to the 68 landmarks; only eyes, nose and mouth corners are used later."""


def intensity(
    cell: str, name: str, report: Report, file: str, line: int, *, scale: float = 1.0, unknown: str = ""
) -> float:
    """A cell, number times `scale` or FACS letter -> intensity in [0, 5]; NaN if it is empty or `unknown`.

    Values just outside are clipped, with a note in the report. Anything else becomes NaN, with a line in the report.
    """
    text = cell.strip().lower()
    if text in (*NOTHING, unknown):
        return UNKNOWN
    try:
        found = LETTERS[text] if scale == 1 and text in LETTERS else parse_number(text)
    except ValueError:
        found = UNKNOWN
    value, limit = found * scale, MAX_INTENSITY / scale
    good = -BESIDE <= value <= MAX_INTENSITY + BESIDE
    report.scale.saw(file, line, name, cell, found, limit, good)
    if not good:
        expected = f"{name}: found {cell[:40]!r}, expected 0 to {limit:g}"
        report.missing("label that is no intensity", file, line, expected)
        return UNKNOWN
    if not 0 <= value <= MAX_INTENSITY:
        report.note("intensity just outside its scale, clipped", file, line, f"{name}: {cell[:40]} of 0 to {limit:g}")
    return min(max(value, 0.0), MAX_INTENSITY)


def presence(cell: str, name: str, report: Report, file: str, line: int, *, unknown: str = "") -> float:
    """0 -> 0, 1 -> `PRESENT`, empty or `unknown` -> NaN; anything else becomes NaN, with a line in the report."""
    text = cell.strip().lower()
    if text in (*NOTHING, unknown):
        return UNKNOWN
    try:
        found = parse_number({"true": "1", "false": "0"}.get(text, text))
    except ValueError:
        found = UNKNOWN
    report.scale.saw(file, line, name, cell, found, 1.0, found in (0, 1))
    if found not in (0, 1):
        expected = f"0, 1 or {unknown}" if unknown else "0 or 1"
        report.missing("label that is no code", file, line, f"{name}: found {cell[:40]!r}, expected {expected}")
        return UNKNOWN
    return PRESENT * found


def au_columns(row: dict[str, str], report: Report, file: str, line: int, *, scale: float = 1.0) -> dict[str, float]:
    """Intensities in the columns `AU1`, `AU01` or `AU01_r` of a row, read as `intensity` does.

    An AU that has only a column `AU01_c` is present or absent.
    """
    au: dict[str, float] = {}
    columns = [(column, name) for column in row if column.startswith("au") and (name := au_name(column))]
    for column, name in columns:
        if column.endswith("_c"):
            continue
        if name in au:
            report.left_out("second label of an action unit", file, line, f"column {column}: {name} is there already")
        else:
            au[name] = intensity(row[column], name, report, file, line, scale=scale)
    graded = set(au)
    for column, name in columns:
        if column.endswith("_c") and name not in graded:
            if name in au:
                detail = f"column {column}: {name} is there already"
                report.left_out("second label of an action unit", file, line, detail)
            else:
                au[name] = presence(row[column], name, report, file, line)
    return au


def landmarks(row: dict[str, str]) -> np.ndarray | None:
    """Columns `x_0` to `y_67` of a row, or the nearest points of a mesh -> (68, 2); None without such columns.

    All are NaN if a cell is not a number. Whether the points fit the image is checked when it is cropped.
    """
    at = DLIB_OF_MESH if f"x_{MESH - 1}" in row else tuple(range(68))
    try:
        cells = [row[f"{axis}_{i}"] for i in at for axis in "xy"]
    except KeyError:
        return None
    try:
        values = np.array([float(cell.replace(",", ".")) for cell in cells])
    except ValueError:
        values = np.full(len(cells), UNKNOWN)
    return values.clip(-1e6, 1e6).astype(np.float32).reshape(68, 2)
