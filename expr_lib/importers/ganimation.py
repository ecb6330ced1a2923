"""The folder of GANimation: ``imgs/``, ``aus_openface.pkl``, ``train_ids.csv`` and ``test_ids.csv``.

A pickle can run any program when it is opened. The reader here builds numpy arrays, dicts, lists, strings and numbers
and refuses everything else by name. Source of the format: Pumarola et al., *GANimation*, ECCV 2018, and its code.
"""

from __future__ import annotations

import pickle
import posixpath
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from expr_lib.importers.labels import intensity
from expr_lib.importers.source import IMAGE_ENDINGS, Face, Report, Tree, au_name

UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)
"""The intensities of OpenFace, in its order; 45 is AU43 here."""


def from_buffer(data: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Any = "C", *rest: Any) -> np.ndarray:
    """An array of plain numbers from its bytes, as pickles of protocol 5 spell it."""
    return np.frombuffer(data, dtype).reshape(shape, order=order)


class ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays in dicts and lists; ``ValueError`` names the first other thing that a file asks for."""

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
        ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
        ("numpy.core.multiarray", "scalar"): np._core.multiarray.scalar,  # type: ignore[attr-defined]
        ("numpy._core.multiarray", "scalar"): np._core.multiarray.scalar,  # type: ignore[attr-defined]
        ("numpy.core.numeric", "_frombuffer"): from_buffer,
        ("numpy._core.numeric", "_frombuffer"): from_buffer,
        ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # how old pickles spell bytes
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise ValueError(f"refused: it asks for {module}.{name}, expected arrays, dicts and strings only")
        return self.ALLOWED[module, name]


def faces(tree: Tree, report: Report) -> Iterator[Face]:
    """Entries of ``aus_openface.pkl``: an image's name without ending -> 17 intensities. Each image is a person."""
    file = tree.one_each(r"aus_openface\.pkl", lambda _: None, "aus_openface.pkl").get(None)
    if file is None:
        raise FileNotFoundError(f"{tree.root / 'aus_openface.pkl'}: not found; expected AUs of the images in imgs/")
    images, split, entries = tree.by_stem(), splits(tree, report), load(tree, file)
    for entry, (name, values) in enumerate(entries.items(), 1):
        stem = stem_of(name)
        au = np.asarray(values).reshape(-1)
        found = images.get(posixpath.basename(stem), [])
        if "/" in stem or "\\" in stem or ".." in stem:
            report.left_out("path that leads out of the folder", file, entry, name)
        elif au.dtype.kind not in "fiu" or len(au) != len(UNITS):
            report.left_out("entry that is not 17 numbers", file, entry, f"{name}: {au.dtype} of length {len(au)}")
        elif len(found) != 1:
            report.left_out("label without an image" if not found else "several images of one name", file, entry, name)
        elif split and stem not in split:
            report.left_out("image in neither train_ids.csv nor test_ids.csv", file, entry, name)
        else:
            labels = {}
            for unit, value in zip(UNITS, au.tolist(), strict=True):
                label = au_name(str(unit)) or ""
                labels[label] = intensity(str(value), label, report, file, entry)
            yield Face(found[0], found[0], labels, (file, entry), split.get(stem, ("",))[0])
    labelled = {stem_of(name) for name in entries}
    for stem, (_, ids, line) in split.items():
        if stem not in labelled:
            report.left_out("image of a split without a label", ids, line, stem)


def stem_of(name: str) -> str:
    """``N_0000000356_00190.jpg``, or the same without an ending -> lower case without ending."""
    name = name.lower()
    return posixpath.splitext(name)[0] if name.endswith(IMAGE_ENDINGS) else name


def load(tree: Tree, file: str) -> dict[str, Any]:
    """The dict in a pickle of arrays; ``ValueError`` in one line for anything else."""
    tree.opened.add(file)
    try:
        with open(tree.root / file, "rb") as opened:
            found = ArraysOnly(opened, encoding="latin1").load()
    except ValueError as error:
        raise ValueError(f"{tree.root / file}: {error}") from None
    except Exception as error:  # a damaged pickle raises whatever it trips over
        raise ValueError(f"{tree.root / file}: damaged, or no pickle: {type(error).__name__}: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{tree.root / file}: found a {type(found).__name__}, expected a dict from names to arrays")
    return found


def splits(tree: Tree, report: Report) -> dict[str, tuple[str, str, int]]:
    """Name as of ``stem_of`` -> train or test, and where that is said; empty where there are no such files."""
    found: dict[str, tuple[str, str, int]] = {}
    for rel, match in tree.matching(r"(train|test)_ids\.csv"):
        for line, row in tree.rows(rel, ""):  # a name may hold blanks
            split, ids, first = found.setdefault(stem_of(row[0]), (match[1], rel, line))
            if (ids, first) != (rel, line):
                report.left_out("second split of an image", rel, line, f"{row[0]}: {split}, {ids} line {first}")
    return found
