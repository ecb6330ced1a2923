"""OpenFace: any folder of photographs, such as CelebA, with the tables of FaceLandmarkImg or FeatureExtraction.

Columns are found by stripped name, ``AUxx_r`` (intensity) before ``AUxx_c`` (presence). Source of the format:
Baltrusaitis et al., *OpenFace 2.0*, FG 2018, and the page "Output format" of its wiki.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from expr_lib.importers.source import (
    PRESENT,
    UNKNOWN,
    Face,
    Report,
    Tree,
    au_columns,
    au_name,
    intensity,
    landmarks,
    number,
    person_of,
)

CONFIDENCE = 0.8
"""Rows below it are left out; OpenFace's own advice."""


def faces(tree: Tree, report: Report) -> Iterator[Face]:
    """``NAME.csv`` labels the image ``NAME.*``, or the frames in ``NAME_aligned/`` where that folder exists."""
    images, person = tree.by_stem(), person_of(tree)
    person |= identities(tree, images, report)
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
                face, frame = row.get("face_id") or "0", row.get("frame", "")
                name = f"frame_det_{face.zfill(2)}_{frame.zfill(6)}"
                found = [
                    rel for end in (".bmp", ".jpg", ".png") if (rel := tree.files.get(f"{stem}_aligned/{name}{end}"))
                ]
                if not (face.isdigit() and frame.isdigit()):
                    report.left_out("frame that is no number", file, line, f"face_id {face!r}, frame {frame!r}")
                elif image := tree.one(found[:1], file, line, name):
                    yield Face(image, posixpath.basename(stem), labels(row, report, file, line), (file, line))
            elif image := tree.one(images.get(posixpath.basename(stem), []), file, line, posixpath.basename(stem)):
                yield Face(image, person[image], labels(row, report, file, line), (file, line), points=landmarks(row))


def doubtful(row: dict[str, str]) -> bool:
    """Did OpenFace say itself that it found no face, or hardly?"""
    try:
        return not (number(row.get("success", "1")) >= 1 and number(row.get("confidence", "1")) >= CONFIDENCE)
    except ValueError:
        return True


def labels(row: dict[str, str], report: Report, file: str, line: int) -> dict[str, float]:
    """Intensities of a row; an AU of which only the presence is told (AU28) is 0 or ``PRESENT``."""
    au = au_columns({column: cell for column, cell in row.items() if column.endswith("_r")}, report, file, line)
    for column, cell in row.items():
        name = au_name(column) if column.endswith("_c") and f"{column[:-1]}r" not in row else None
        if name is None:
            continue
        value = intensity(cell, name, report, file, line)
        if value > 0 and value != 1:
            report.missing("label that is no code", file, line, f"{name}: found {cell!r}, expected 0 or 1")
            value = UNKNOWN
        au[name] = PRESENT * value
    return au


def identities(tree: Tree, images: dict[str, list[str]], report: Report) -> dict[str, str]:
    """CelebA's ``identity_CelebA.txt``, where the folder has it: image -> person."""
    found: dict[str, str] = {}
    for rel, _ in tree.matching(r"identity_celeba\.txt"):
        for line, row in tree.rows(rel):
            if len(row) != 2:
                report.left_out("line that is not image and person", rel, line, " ".join(row)[:40])
                continue
            for image in images.get(posixpath.splitext(row[0])[0].lower(), []):
                if found.setdefault(image, row[1]) != row[1]:
                    report.left_out(
                        "second person of an image", rel, line, f"{image}: {row[1]}, before: {found[image]}"
                    )
    return found
