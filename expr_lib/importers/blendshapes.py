"""Blend shapes: the 52 numbers from 0 to 1 that phones (ARKit, Live Link Face) and MediaPipe write for each frame.

They are converted to AUs by the shapes in `facs`, left and right averaged, so they are not FACS
intensities. Sources of the format: Apple, *ARFaceAnchor.BlendShapeLocation*; Google, MediaPipe *Face Landmarker*.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from expr_lib.facs import ACTION_UNITS, AU_NAMES, MAX_INTENSITY
from expr_lib.importers.frames import Entry, Lookup, matched
from expr_lib.importers.labels import intensity, landmarks
from expr_lib.importers.source import IMAGE_ENDINGS, LabelledImage, Report, Tree, whole

SHAPES = sorted({shape for unit in ACTION_UNITS for shape in unit.shapes})
SHARES = np.array([[unit.shapes.get(shape, 0.0) for unit in ACTION_UNITS] for shape in SHAPES])  # (shapes, AUs)
AU_OF_SHAPES = np.linalg.inv(SHARES)  # as many shapes as AUs
NAMING = ("image", "input", "file", "filename", "path")
"""Columns that may name the photograph or film of a row; without one, the name of the table is that of the film."""
COUNTING = ("frame", "frame_number", "frame_id", "frameid", "frame_index")
ENOUGH = 20
"""A table of this form has at least this number of columns of shapes."""


def shape_columns(columns: Sequence[str]) -> dict[str, list[str]]:
    """The shapes of `SHAPES` that a table has -> their columns, one or two sides; empty below `ENOUGH`.

    `browDownLeft` of ARKit and MediaPipe, `BrowDownLeft` of Live Link Face and `browDown_L` are the same.
    """
    plain = {re.sub(r"_([lr])$", lambda m: {"l": "left", "r": "right"}[m[1]], name.lower()): name for name in columns}
    found = {}
    for shape in SHAPES:
        sides = [shape.replace("*", side).lower() for side in (("Left", "Right") if "*" in shape else ("",))]
        if here := [plain[side] for side in sides if side in plain]:
            found[shape] = here
    return found if sum(map(len, found.values())) >= ENOUGH else {}


def au_of_shapes(
    row: dict[str, str], shapes: dict[str, list[str]], report: Report, file: str, line: int
) -> dict[str, float]:
    """A row of blend shapes in [0, 1] -> AUs in [0, 5]; NaN if a shape of the AU is missing."""
    values = np.full(len(SHAPES), np.nan)
    for i, shape in enumerate(SHAPES):
        sides = [intensity(row[x], x, report, file, line, scale=MAX_INTENSITY) for x in shapes.get(shape, [])]
        known = [side for side in sides if not np.isnan(side)]
        values[i] = np.mean(known) if known else np.nan
    au = AU_OF_SHAPES @ np.nan_to_num(values)  # (shapes,) -> (AUs,)
    au[(AU_OF_SHAPES[:, np.isnan(values)] != 0).any(1)] = np.nan
    return dict(zip(AU_NAMES, au.clip(0, MAX_INTENSITY).tolist(), strict=True))


def labelled_images(tree: Tree, report: Report) -> Iterator[LabelledImage]:
    """Rows of every `*.csv` with columns of blend shapes, for photographs named in a column or frames of a film.

    Frames are numbered by a column, from 0 or 1, or by the rows.
    """
    lookup = Lookup(tree)
    for file in tree.tables(".csv"):
        columns, rows = tree.table(file)
        shapes = shape_columns(columns)
        if not shapes:
            if columns:  # else it could not be read
                report.left_out("table without columns of blend shapes", file)
            continue
        naming = next((name for name in NAMING if name in columns), None)
        counting = next((name for name in COUNTING if name in columns), None)
        entries, n = list[Entry](), 0
        for n, (line, row) in enumerate(rows, 1):
            source = row[naming].replace("\\", "/") if naming else file
            frame = whole(row[counting]) if counting else n
            film = not source.lower().endswith(IMAGE_ENDINGS)
            if film and frame is None:
                found = row[counting][:40] if counting else ""
                report.left_out("frame that is no number", file, line, f"found {found!r}")
                continue
            lost = whole(row.get("blendshapecount", "1")) == 0  # Live Link Face
            au = {} if lost else au_of_shapes(row, shapes, report, file, line)
            if all(np.isnan(value) for value in au.values()):
                report.left_out("row without a face", file, line)
                continue
            entries.append(Entry(line, source, frame if film else None, au, landmarks(row)))
        if n == 0:
            report.left_out("table without a row: no face was found", file)
        first = min((entry.frame for entry in entries if entry.frame is not None), default=0)
        yield from matched(entries, lookup, file, 0 if counting and first == 0 else 1, report)
