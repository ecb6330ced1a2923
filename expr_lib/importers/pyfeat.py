"""py-feat: tables as ``Detector.detect(...)`` writes them (a Fex), one row for each face.

Its AUs are probabilities or normalized intensities from 0 to 1; here they are multiplied by 5 (our choice), so they are
no FACS intensities. Source of the format: Cheong et al., *Py-Feat: Python Facial Expression Analysis Toolbox*, 2023.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator

from expr_lib.facs import MAX_INTENSITY
from expr_lib.importers.source import Face, Report, Tree, au_columns, landmarks, number, person_of

SCORE = 0.8
"""``FaceScore`` below which a row is left out; our choice."""


def faces(tree: Tree, report: Report) -> Iterator[Face]:
    """Rows of every ``*.csv`` that has the columns ``input`` and ``AU01``; of ``input`` only the file's name counts."""
    images, person = tree.by_stem(), person_of(tree)
    for low, file in tree.files.items():
        if not low.endswith(".csv"):
            continue
        rows = list(tree.table(file))
        if not rows or not {"input", "au01"} <= rows[0][1].keys():
            report.left_out("table without the columns input and AU01", file)
            continue
        several = Counter(row["input"] for _, row in rows)
        for line, row in rows:
            name = posixpath.basename(row["input"].replace("\\", "/"))
            found = images.get(posixpath.splitext(name)[0].lower(), [])
            if doubtful(row):
                report.left_out("face not found for certain", file, line, f"FaceScore {row.get('facescore', '?')}")
            elif several[row["input"]] > 1:
                report.left_out("several faces in one image", file, line, f"{name}: {several[row['input']]} faces")
            elif image := tree.one(found, file, line, name):
                au = au_columns(row, report, file, line, scale=MAX_INTENSITY)
                yield Face(image, person[image], au, (file, line), points=landmarks(row))


def doubtful(row: dict[str, str]) -> bool:
    """Did the detector find no face, or hardly one?"""
    try:
        return not number(row.get("facescore") or "nan") >= SCORE
    except ValueError:
        return True
