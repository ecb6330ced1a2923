"""What every importer needs: the files below one folder, their text and tables, AU names, and a report that counts.

Nothing outside the folder is ever read: links that lead out of it, and paths in label files that do, are left out and
counted. A label that is missing or cannot be understood is NaN, never 0.
"""

from __future__ import annotations

import csv
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from expr_lib.facs import MAX_INTENSITY

Key = TypeVar("Key", bound=Hashable)
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
PRESENT = 3.0
"""Intensity written for an AU that is coded as present without saying how strongly: C, the middle. Our choice."""
UNKNOWN = float("nan")


@dataclass(slots=True)
class Face:
    """One labelled image of a source folder."""

    image: str  # path below the folder, with /
    subject: str
    au: dict[str, float]  # [0, 5]; NaN or no entry = missing label
    where: tuple[str, int]  # label file and line
    split: str = ""  # train, val or test; "" = drawn by subject
    points: np.ndarray | None = None  # (68, 2) landmarks in pixels of the image, where the data set has them


@dataclass
class Report:
    """Counts what was left out, which labels are missing and what else is worth knowing; every case with its place."""

    cases: list[tuple[str, str, str, int, str]] = field(
        default_factory=list
    )  # kind, reason, file, line (0 = none), detail

    def left_out(self, reason: str, file: str, line: int = 0, detail: str = "") -> None:
        """An image or a label that is not imported."""
        self.cases.append(("left out", reason, file, line, detail))

    def missing(self, reason: str, file: str, line: int = 0, detail: str = "") -> None:
        """A label that becomes NaN although the data set should have it."""
        self.cases.append(("label missing", reason, file, line, detail))

    def note(self, what: str, file: str = "", line: int = 0, detail: str = "") -> None:
        """Something that was decided on the way."""
        self.cases.append(("note", what, file, line, detail))

    def counts(self) -> dict[str, int]:
        """How often each kind and reason occurred."""
        return dict(Counter(f"{kind}: {reason}" for kind, reason, *_ in self.cases))

    def lines(self) -> list[str]:
        """One line for each reason: how often, and the first place where."""
        first: dict[str, str] = {}
        for kind, reason, file, line, detail in self.cases:
            place = f"{file}{f' line {line}' if line else ''}{f': {detail}' if detail else ''}"
            first.setdefault(f"{kind}: {reason}", place)
        return [f"{n:8,}  {what}{f'  ({first[what]})' if first[what] else ''}" for what, n in self.counts().items()]


class Tree:
    """All files below a folder, found once and looked up without regard to case."""

    def __init__(self, root: str | Path, report: Report) -> None:
        self.root, self.report = Path(root), report
        if not self.root.is_dir():
            raise NotADirectoryError(f"{root}: not a folder; expected the folder of a data set")
        self.files: dict[str, str] = {}  # lower-case path -> path, both below the root and with /
        self.opened: set[str] = set()  # paths of the label files that an importer has read
        inside = os.path.realpath(self.root) + os.sep

        def closed(error: OSError) -> None:
            folder = os.path.relpath(error.filename, self.root).replace(os.sep, "/")
            report.left_out("folder that cannot be read", folder, 0, str(error.strerror))

        for folder, folders, names in os.walk(self.root, onerror=closed):
            below = os.path.relpath(folder, self.root).replace(os.sep, "/")
            folders.sort()
            for name in sorted([*folders, *names]):
                path, rel = os.path.join(folder, name), name if below == "." else f"{below}/{name}"
                if name in folders:
                    if os.path.islink(path):
                        report.left_out("link to a folder, not followed", rel)
                elif not os.path.isfile(path):
                    report.left_out("neither a file nor a folder, or a link that leads nowhere", rel)
                elif os.path.islink(path) and not os.path.realpath(path).startswith(inside):
                    report.left_out("link that leads out of the folder", rel)
                elif (known := self.files.setdefault(rel.lower(), rel)) != rel:
                    report.left_out("name that differs from another only in case", rel, 0, known)

    def images(self) -> Iterator[str]:
        """Paths of all image files."""
        return (rel for low, rel in self.files.items() if low.endswith(IMAGE_ENDINGS))

    def matching(self, pattern: str) -> Iterator[tuple[str, re.Match[str]]]:
        """Paths whose lower-case form ends as the pattern says, with the match."""
        compiled = re.compile(rf"(?:^|.*/){pattern}$")
        return ((rel, match) for low, rel in self.files.items() if (match := compiled.match(low)))

    def one_each(self, pattern: str, key: Callable[[re.Match[str]], Key], what: str) -> dict[Key, str]:
        """What a name says -> the path; a second file of the same is left out and counted, as "second ``what``"."""
        found: dict[Key, str] = {}
        for rel, match in self.matching(pattern):
            if (first := found.setdefault(key(match), rel)) != rel:
                self.report.left_out(f"second {what}", rel, 0, f"first is {first}")
        return found

    def frames(self, pattern: str) -> dict[tuple[str, ...], dict[int, str]]:
        """Images of films: the pattern's groups but the last, in capitals -> frame number, its last group -> image."""

        def key(match: re.Match[str]) -> tuple[tuple[str, ...], int]:
            *film, number = match.groups()
            return tuple(part.upper() for part in film), int(number)

        films: dict[tuple[str, ...], dict[int, str]] = {}
        for (film, number), rel in self.one_each(pattern, key, "image of a frame").items():
            films.setdefault(film, {})[number] = rel
        return films

    def find(self, name: str, file: str, line: int) -> str | None:
        """The image that a label file names, or None and a line in the report."""
        path = posixpath.normpath(name.strip().replace("\\", "/"))
        if path.startswith(("/", "..")) or re.match(r"[a-zA-Z]:", path):
            self.report.left_out("path that leads out of the folder", file, line, name)
        elif (rel := self.files.get(path.lower())) is None:
            self.report.left_out("label without an image", file, line, name)
        elif not path.lower().endswith(IMAGE_ENDINGS):
            self.report.left_out("label of a file that is no image", file, line, name)
        else:
            return rel
        return None

    def by_stem(self) -> dict[str, list[str]]:
        """Lower-case file name without ending -> the images of that name."""
        found: dict[str, list[str]] = {}
        for rel in self.images():
            found.setdefault(posixpath.splitext(posixpath.basename(rel))[0].lower(), []).append(rel)
        return found

    def one(self, images: list[str], file: str, line: int, name: str) -> str | None:
        """The only image that a name stands for, or None and a line in the report."""
        if len(images) == 1:
            return images[0]
        reason = "label for which several images have the name" if images else "label without an image"
        self.report.left_out(reason, file, line, name)
        return None

    def text(self, rel: str) -> str:
        """A text file in UTF-8 or, with its mark, UTF-16; ``ValueError`` names the line that is neither."""
        self.opened.add(rel)
        data = (self.root / rel).read_bytes()
        encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            found = encoding.removesuffix("-sig").upper()
            raise ValueError(f"line {line}: found bytes that are not {found}, expected text in UTF-8") from None

    def rows(self, rel: str, separators: str = ";\t,") -> Iterator[tuple[int, list[str]]]:
        """Lines of a table: line number and stripped cells; separated by the first of these in line 1, else by blanks.

        Blank lines are skipped. A file that is no text is one line in the report and yields nothing.
        """
        try:
            lines = self.text(rel).splitlines()
            start = next((line for line in lines if line.strip()), "")
            separator = next((mark for mark in separators if mark in start), None)
            cells = (
                csv.reader(lines, delimiter=separator, skipinitialspace=True) if separator else map(str.split, lines)
            )
            for number, row in enumerate(cells, 1):
                if any(row):
                    yield number, [cell.strip() for cell in row]
        except (ValueError, OSError, csv.Error) as error:
            self.report.left_out("label file that cannot be read", rel, 0, str(error))

    def table(self, rel: str, *needed: str) -> Iterator[tuple[int, dict[str, str]]]:
        """Rows of a table with a header: line number and cells by column, names in lower case.

        Lines with fewer or more cells than the header are left out and counted. ``ValueError`` where a needed column is
        missing or a column comes twice.
        """
        if needed:
            try:
                self.text(rel)
            except ValueError as error:  # without this table there is nothing to import
                raise ValueError(f"{self.root / rel}: {error}") from None
        rows = self.rows(rel)
        _, header = next(rows, (1, []))
        header = [name.lower() for name in header]
        if twice := sorted({name for name in header if name and header.count(name) > 1}):
            raise ValueError(f"{self.root / rel}: line 1: column {twice[0]} comes twice")
        for name in needed:
            if name not in header:
                raise ValueError(f"{self.root / rel}: line 1: found no column {name}, expected one of this name")
        for line, row in rows:
            if len(row) != len(header):
                expected = f"found {len(row)} cells, expected {len(header)}"
                self.report.left_out("line of another length than the header", rel, line, expected)
            else:
                yield line, dict(zip(header, row, strict=True))


def au_name(column: str) -> str | None:
    """``AU01_r``, ``au1``, ``1`` -> ``AU1``; None for anything else.

    A blink (AU45) is eyes closed (AU43) for a moment; a single image cannot tell them apart, so both are AU43 here.
    """
    match = re.fullmatch(r"(?:au)?\s*0*([1-9]\d?)(?:_[rc])?", column.strip().lower())
    return ("AU43" if match[1] == "45" else f"AU{match[1]}") if match else None


def number(cell: str) -> float:
    """A number with a point or a comma before the decimals; ``ValueError`` for anything else."""
    return float(cell.strip().replace(",", "."))


def intensity(
    cell: str, name: str, report: Report, file: str, line: int, *, scale: float = 1.0, unknown: str = ""
) -> float:
    """A cell -> intensity in [0, 5]; NaN where it is empty or the data set's code for unknown.

    Anything else that is no such number is NaN too, and a line in the report.
    """
    text = cell.strip().lower()
    if text in ("", "nan", "n/a", "na", unknown):
        return UNKNOWN
    try:
        value = number(text) * scale
    except ValueError:
        value = UNKNOWN
    if not 0 <= value <= MAX_INTENSITY:
        expected = f"{name}: found {cell!r}, expected 0 to {MAX_INTENSITY / scale:g}"
        report.missing("label that is no intensity", file, line, expected)
        return UNKNOWN
    return value


def au_columns(row: dict[str, str], report: Report, file: str, line: int, *, scale: float = 1.0) -> dict[str, float]:
    """Intensities in the columns ``AU1``, ``AU01`` or ``AU01_r`` of a row, read as :func:`intensity` does."""
    au: dict[str, float] = {}
    for column, cell in row.items():
        if (name := au_name(column)) is None or not column.startswith("au"):
            continue
        if name in au:
            report.left_out("second label of an action unit", file, line, f"column {column}: {name} is there already")
        else:
            au[name] = intensity(cell, name, report, file, line, scale=scale)
    return au


def landmarks(row: dict[str, str]) -> np.ndarray | None:
    """Columns ``x_0`` to ``y_67`` of a table -> (68, 2), None where a row has not all of them."""
    try:
        return np.array([[number(row[f"{axis}_{i}"]) for axis in "xy"] for i in range(68)], np.float32)
    except (KeyError, ValueError):
        return None


def person_of(tree: Tree) -> dict[str, str]:
    """Who is in each image where no file says so: its folder, or, where all lie in one folder, each a person alone."""
    images = list(tree.images())
    alone = len({posixpath.dirname(rel) for rel in images}) == 1
    return {rel: rel if alone else posixpath.dirname(rel) for rel in images}
