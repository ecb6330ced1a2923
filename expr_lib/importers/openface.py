"""OpenFace: any folder of photographs, such as CelebA, with the tables of FaceLandmarkImg or FeatureExtraction.

Columns are found by stripped name, ``AUxx_r`` (intensity) before ``AUxx_c`` (presence). Source of the format:
Baltrusaitis et al., *OpenFace 2.0*, FG 2018, and the page "Output format" of its wiki.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from expr_lib.importers.source import PRESENT, UNKNOWN, Face, Report, Tree, au_name, intensity, landmarks, number
from expr_lib.importers.source import person_of as persons

CONFIDENCE = 0.8
"""Rows below it are left out; OpenFace's own advice."""


def faces(tree: Tree, report: Report) -> Iterator[Face]:
    """``NAME.csv`` labels the image ``NAME.*``, or the frames in ``NAME_aligned/`` where that folder exists."""
    images, person = tree.by_stem(), persons(tree)
    person |= identities(tree, images)
    folders = {posixpath.dirname(low) for low in tree.files}
    for low, file in tree.files.items():
        if not low.endswith(".csv"):
            continue
        stem = posixpath.splitext(low)[0]
        rows = list(tree.table(file))
        if not rows or not any(name.startswith("au") and name.endswith(("_r", "_c")) for name in rows[0][1]):
            report.left_out("table without AU columns", file)
            continue
        frames = f"{stem}_aligned" in folders
        several = len(rows) if not frames and "frame" not in rows[0][1] else 1
        for line, row in rows:
            if doubtful(row):
                report.left_out("face not found for certain", file, line, f"confidence {row.get('confidence', '?')}")
            elif several > 1:
                report.left_out("several faces in one image", file, line, f"{several} faces")
            elif frames:
                path = f"{stem}_aligned/frame_det_{int(row.get('face_id') or 0):02d}_{int(row['frame']):06d}"
                found = [rel for end in (".bmp", ".jpg", ".png") if (rel := tree.files.get(path + end))]
                if found:
                    yield Face(found[0], posixpath.basename(stem), labels(row, report, file, line), (file, line))
                else:
                    report.left_out("label without an image", file, line, path)
            elif image := tree.one(images.get(posixpath.basename(stem), []), file, line, posixpath.basename(stem)):
                yield Face(image, person[image], labels(row, report, file, line), (file, line), points=landmarks(row))


def doubtful(row: dict[str, str]) -> bool:
    """Did OpenFace say itself that it found no face, or hardly?"""
    try:
        return number(row.get("success", "1")) < 1 or number(row.get("confidence", "1")) < CONFIDENCE
    except ValueError:
        return True


def labels(row: dict[str, str], report: Report, file: str, line: int) -> dict[str, float]:
    """Intensities of a row; an AU of which only the presence is told (AU28) is 0 or ``PRESENT``."""
    au: dict[str, float] = {}
    for column, cell in row.items():
        name = au_name(column) if column.endswith(("_r", "_c")) else None
        if name and column.endswith("_r"):
            au[name] = intensity(cell, name, report, file, line)
        elif name and f"{column[:-1]}r" not in row:
            value = intensity(cell, name, report, file, line)
            au[name] = PRESENT * value if value in (0, 1) else UNKNOWN
    return au


def identities(tree: Tree, images: dict[str, list[str]]) -> dict[str, str]:
    """CelebA's ``identity_CelebA.txt``, where the folder has it: image -> person."""
    found: dict[str, str] = {}
    for rel, _ in tree.matching(r"identity_celeba\.txt"):
        for _, (name, *rest) in tree.rows(rel):
            for image in images.get(posixpath.splitext(name)[0].lower(), []) if rest else []:
                found[image] = rest[0]
    return found
