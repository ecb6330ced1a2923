"""Cells of label files -> intensities and landmarks. What cannot be understood is NaN, never 0, and told."""

from __future__ import annotations

import numpy as np

from expr_lib.facs import MAX_INTENSITY
from expr_lib.importers.source import PRESENT, UNKNOWN, Report, au_name, number

LETTERS = {letter: float(i) for i, letter in enumerate("abcde", 1)}
"""FACS: A is a trace, E the maximum."""
BESIDE = 0.5
"""How far outside 0 to 5 a calibration may leave an intensity; such values are clipped and counted. Our choice."""
NOTHING = ("", "nan", "n/a", "na", "none", "null")

MESH = 468
"""Points of MediaPipe's face mesh; ten more are the irises."""
DLIB_OF_MESH = (
    127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 397, 361, 323, 454, 356,  # the contour
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,  # the brows
    168, 197, 5, 4, 75, 97, 2, 326, 305,  # the nose
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # the eyes
    61, 39, 37, 0, 267, 269, 291, 321, 314, 17, 84, 91, 78, 82, 13, 312, 308, 317, 14, 87,  # the mouth
)  # fmt: skip
"""The points of MediaPipe's face mesh next to the 68 landmarks; only eyes, nose and mouth corners are used later on."""


def intensity(
    cell: str, name: str, report: Report, file: str, line: int, *, scale: float = 1.0, unknown: str = ""
) -> float:
    """A cell, number times ``scale`` or FACS letter -> intensity in [0, 5]; NaN where it is empty or ``unknown``.

    Values just outside are clipped and counted. Anything else is NaN too, and a line in the report.
    """
    text = cell.strip().lower()
    if text in (*NOTHING, unknown):
        return UNKNOWN
    try:
        found = LETTERS[text] if scale == 1 and text in LETTERS else number(text)
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
    """0 -> 0, 1 -> ``PRESENT``, empty or ``unknown`` -> NaN; anything else is NaN and a line in the report."""
    text = cell.strip().lower()
    if text in (*NOTHING, unknown):
        return UNKNOWN
    try:
        found = number({"true": "1", "false": "0"}.get(text, text))
    except ValueError:
        found = UNKNOWN
    report.scale.saw(file, line, name, cell, found, 1.0, found in (0, 1))
    if found not in (0, 1):
        expected = f"0, 1 or {unknown}" if unknown else "0 or 1"
        report.missing("label that is no code", file, line, f"{name}: found {cell[:40]!r}, expected {expected}")
        return UNKNOWN
    return PRESENT * found


def au_columns(row: dict[str, str], report: Report, file: str, line: int, *, scale: float = 1.0) -> dict[str, float]:
    """Intensities in the columns ``AU1``, ``AU01`` or ``AU01_r`` of a row, read as :func:`intensity` does.

    An AU that has only a column ``AU01_c`` is present or absent.
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
                told = f"column {column}: {name} is there already"
                report.left_out("second label of an action unit", file, line, told)
            else:
                au[name] = presence(row[column], name, report, file, line)
    return au


def landmarks(row: dict[str, str]) -> np.ndarray | None:
    """Columns ``x_0`` to ``y_67`` of a row -> (68, 2); of a mesh those points that are next to them; None without them.

    All are NaN where a cell is no number; whether the points fit the image is seen when it is cut.
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
