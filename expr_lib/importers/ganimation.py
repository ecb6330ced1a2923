"""The folder of GANimation: `imgs/`, `aus_openface.pkl`, `train_ids.csv` and `test_ids.csv`.

Unpickling can run any program, so this file is not unpickled: `pickled.py` extracts numbers and names only.
Source of the format: Pumarola et al., *GANimation*, ECCV 2018, and its code.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

from expr_lib.errors import InputError
from expr_lib.importers.labels import intensity
from expr_lib.importers.pickled import MAX_BYTES, numbers, read_pickle
from expr_lib.importers.source import IMAGE_ENDINGS, LabelledImage, Report, Tree, au_name

UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)
"""The intensities of OpenFace, in its order; AU45 becomes AU43."""


def labelled_images(tree: Tree, report: Report) -> Iterator[LabelledImage]:
    """Entries of `aus_openface.pkl`: name of an image -> 17 intensities. Each image counts as a person."""
    file = tree.one_each(r"aus_openface\.pkl", lambda _: None, "aus_openface.pkl").get(None)
    if file is None:
        raise FileNotFoundError(f"{tree.root / 'aus_openface.pkl'}: not found; expected AUs of the images in imgs/")
    images, split, entries = tree.by_stem(), splits(tree, report), load(tree, file)
    for entry, (name, values) in enumerate(entries.items(), 1):
        stem = stem_of(name)
        au = numbers(values, len(UNITS))
        found = images.get(posixpath.basename(stem), [])
        if "/" in stem or "\\" in stem or ".." in stem:
            report.left_out("path that leads out of the folder", file, entry, name)
        elif isinstance(au, str):
            report.left_out("entry that is not 17 numbers", file, entry, f"{name}: {au}")
        elif len(found) != 1:
            report.left_out("label without an image" if not found else "several images of one name", file, entry, name)
        elif split and stem not in split:
            report.left_out("image in neither train_ids.csv nor test_ids.csv", file, entry, name)
        else:
            labels = {}
            for unit, value in zip(UNITS, au, strict=True):
                label = au_name(str(unit)) or ""
                labels[label] = intensity(str(value), label, report, file, entry)
            yield LabelledImage(found[0], found[0], labels, (file, entry), split.get(stem, ("",))[0])
    labelled = {stem_of(name) for name in entries}
    for stem, (_, ids, line) in split.items():
        if stem not in labelled:
            report.left_out("image of a split without a label", ids, line, stem)


def stem_of(name: str) -> str:
    """`N_0000000356_00190.jpg`, with or without its ending -> lower case without ending."""
    name = name.lower()
    return posixpath.splitext(name)[0] if name.endswith(IMAGE_ENDINGS) else name


def load(tree: Tree, file: str) -> dict[str, Any]:
    """The dict in a pickle of arrays; `InputError` for any other pickle."""
    tree.opened.add(file)
    path = tree.root / file
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise InputError(f"found {size:,} bytes, expected at most {MAX_BYTES:,}")
        return read_pickle(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def splits(tree: Tree, report: Report) -> dict[str, tuple[str, str, int]]:
    """Name as by `stem_of` -> (train or test, file, line); empty if there are no such files."""
    found: dict[str, tuple[str, str, int]] = {}
    for rel, match in tree.matching(r"(train|test)_ids\.csv"):
        for line, row in tree.rows(rel, ""):  # a name may contain blanks
            name = row[0]
            split, ids, first = found.setdefault(stem_of(name), (match[1], rel, line))
            if (ids, first) != (rel, line):
                report.left_out("second split of an image", rel, line, f"{name}: {split}, {ids} line {first}")
    return found
