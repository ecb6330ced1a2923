"""py-feat: tables as `Detector.detect(...)` writes them (a Fex), one row for each face of an image or frame.

Its AUs are probabilities or normalized intensities from 0 to 1; here they are multiplied by 5 (our choice), so they are
not FACS intensities. Source of the format: Cheong et al., *Py-Feat: Python Facial Expression Analysis Toolbox*, 2023.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

import numpy as np

from expr_lib.facs import MAX_INTENSITY
from expr_lib.importers.align import MAX_BESIDE, MAX_YAW, anchors, beside_face, similarity
from expr_lib.importers.blendshapes import au_of_shapes, shape_columns
from expr_lib.importers.frames import Entry, Lookup, matched
from expr_lib.importers.labels import MESH, NOTHING, au_columns, landmarks
from expr_lib.importers.pose import yaw
from expr_lib.importers.source import IMAGE_ENDINGS, LabelledImage, Report, Tree, parse_number, whole

SCORE = 0.8
"""`FaceScore` below which a row is left out; our choice."""


def labelled_images(tree: Tree, report: Report) -> Iterator[LabelledImage]:
    """Rows of every `*.csv` with the column `input` and AUs or blend shapes.

    `input` is a photograph, or a film whose frames `frame` counts from 0; it is matched by the longest common end
    of the paths. Each `Identity` that py-feat found in a film is a person.
    """
    lookup = Lookup(tree)
    for file in tree.tables(".csv"):
        columns, rows = tree.table(file)
        shapes = {} if "au01" in columns else shape_columns(columns)
        if "input" not in columns or not ("au01" in columns or shapes):
            if columns:  # else it could not be read
                report.left_out("table without the columns input and AU01", file)
            continue
        entries, n = list[Entry](), 0
        for n, (line, row) in enumerate(rows, 1):  # noqa: B007
            source, frame = row["input"].replace("\\", "/"), whole(row.get("frame") or "0")
            film = not source.lower().endswith(IMAGE_ENDINGS)
            if doubtful(row):
                report.left_out("face not found for certain", file, line, f"FaceScore {row.get('facescore', '?')}")
            elif film and frame is None:
                report.left_out("frame that is no number", file, line, f"frame {row.get('frame', '')[:40]!r}")
            else:
                if shapes:
                    au = au_of_shapes(row, shapes, report, file, line)
                else:
                    au = au_columns(row, report, file, line, scale=MAX_INTENSITY)
                points = sound_mesh(row, report, file, line)
                who = row.get("identity", "") if film else ""
                who = "" if who.lower() in NOTHING else who[:40]
                entries.append(Entry(line, posixpath.normpath(source), frame if film else None, au, points, person=who))
        if n == 0:
            report.left_out("table without a row: no face was found", file)
        yield from matched(entries, lookup, file, 0, report)


def sound_mesh(row: dict[str, str], report: Report, file: str, line: int) -> np.ndarray | None:
    """The landmarks, except those of a mesh that looks turned or is no face although `Yaw`, in any unit, is small."""
    points = landmarks(row)
    if points is None or f"x_{MESH - 1}" not in row or not np.isfinite(points).all():
        return points
    large = points / np.abs(points).max() * 1000  # pixels, or shares of the image
    turned, beside = abs(yaw(large)), beside_face(similarity(anchors(large)), large)
    if turned <= MAX_YAW and beside <= MAX_BESIDE:
        return points
    try:
        straight = abs(parse_number(row.get("yaw", ""))) < np.radians(MAX_YAW)
    except ValueError:
        straight = False
    if straight:
        found = f"turned by {turned:.0f} degrees" if turned > MAX_YAW else f"{beside:.0%} of the crop beside the face"
        report.note("mesh that contradicts the column Yaw, not used", file, line, found)
    return None if straight else points


def doubtful(row: dict[str, str]) -> bool:
    """Whether the detector found no face or was not certain."""
    try:
        return not parse_number(row.get("facescore", "1")) >= SCORE
    except ValueError:
        return True
