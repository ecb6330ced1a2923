"""Common parts of all importers: the files below a folder, their text and tables, AU names, and the report.

Nothing outside the folder is read: links and paths in label files that lead out of it are left out, with a line in the
report. A label that is missing or invalid is NaN, never 0.
"""

from __future__ import annotations

import csv
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from expr_lib import films
from expr_lib.errors import InputError
from expr_lib.images import IMAGE_ENDINGS
from expr_lib.importers.scale import Scale

Key = TypeVar("Key", bound=Hashable)
PRESENT = 3.0
"""Intensity of an AU that is coded as present without an intensity: C, the middle. Our choice."""
UNKNOWN = float("nan")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
PEOPLE = "people.csv"
"""File in the source folder, of any form, that names the person on each image; read by `people.py`."""


@dataclass(slots=True)
class LabelledImage:
    """One labelled image of a source folder."""

    image: str  # path below the folder, with /
    subject: str  # "" = unknown
    au: dict[str, float]  # [0, 5]; NaN or no entry = missing label
    where: tuple[str, int]  # label file and line
    split: str = ""  # train, val or test; "" = drawn by subject
    points: np.ndarray | None = None  # (68, 2) landmarks in pixels of the image, if known
    take: str = ""  # a film of one person in one view; "" = unknown
    face: int = 0  # which of several people in the image
    turn: tuple[float, float] = (UNKNOWN, UNKNOWN)  # yaw and pitch in degrees, by landmarks


@dataclass
class Report:
    """A list of everything that was left out, of missing labels and of notes, each with its place."""

    cases: list[tuple[str, str, str, int, str]] = field(
        default_factory=list
    )  # kind, reason, file, line (0 = none), detail
    scale: Scale = field(default_factory=Scale)  # of all intensities read

    def left_out(self, reason: str, file: str, line: int = 0, detail: str = "") -> None:
        """Add an image or a label that is not imported."""
        self.cases.append(("left out", reason, file, line, detail))

    def missing(self, reason: str, file: str, line: int = 0, detail: str = "") -> None:
        """Add a label that is NaN although the data set should have it."""
        self.cases.append(("label missing", reason, file, line, detail))

    def note(self, what: str, file: str = "", line: int = 0, detail: str = "") -> None:
        """Add a note about a decision of the importer."""
        self.cases.append(("note", what, file, line, detail))

    def counts(self) -> dict[str, int]:
        """Number of cases by kind and reason."""
        return dict(Counter(f"{kind}: {reason}" for kind, reason, *_ in self.cases))

    def lines(self) -> list[str]:
        """One line for each reason, with the number of cases and the first place."""
        first: dict[str, str] = {}
        for kind, reason, file, line, detail in self.cases:
            place = f"{file}{f' line {line}' if line else ''}{f': {detail}' if detail else ''}"
            first.setdefault(f"{kind}: {reason}", place)
        return [f"{n:8,}  {what}{f'  ({first[what]})' if first[what] else ''}" for what, n in self.counts().items()]


class Tree:
    """All files below a folder; look-ups ignore case."""

    def __init__(self, root: str | Path, report: Report) -> None:
        self.root, self.report = Path(root), report
        if not self.root.is_dir():
            raise NotADirectoryError(f"{root}: found no folder, expected the folder of a data set")
        report.scale.root = self.root
        self.files: dict[str, str] = {}  # lower-case path -> path, both below the root and with /
        self.opened: set[str] = set()  # paths of the label files that an importer has read
        self.copies: set[str] = set()  # images that a program made from others, which are not used
        self.unread = ""  # why a film was not read, if PyAV is not installed
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
                    report.left_out("neither a file nor a folder, or a broken link", rel)
                elif os.path.islink(path) and not os.path.realpath(path).startswith(inside):
                    report.left_out("link that leads out of the folder", rel)
                elif (known := self.files.setdefault(rel.lower(), rel)) != rel:
                    report.left_out("name that differs from another only in case", rel, 0, known)

    @cached_property
    def films(self) -> dict[str, list[str]]:
        """Films that can be read -> names of their frames, in the order in which they are shown."""
        found = {}
        for rel in self.tables(*films.ENDINGS):
            try:
                found[rel] = films.frame_paths(rel, films.count_frames(self.root / rel))
            except ImportError as error:  # without PyAV, images and their labels can still be imported
                self.unread = self.unread or f"{self.root / rel}: {error}"
                self.report.left_out("film that needs PyAV", rel, 0, str(error))
            except (ValueError, OSError) as error:
                self.report.left_out(
                    "film that cannot be read", rel, 0, str(error).removeprefix(f"{self.root / rel}: ")
                )
        return found

    def images(self) -> Iterator[str]:
        """Paths of all image files, without frames of films."""
        return (rel for low, rel in self.files.items() if low.endswith(IMAGE_ENDINGS))

    def tables(self, *endings: str) -> Iterator[str]:
        """Paths of all files with these endings, except `people.csv`."""
        return (rel for low, rel in self.files.items() if low.endswith(endings) and low != PEOPLE)

    def matching(self, pattern: str) -> Iterator[tuple[str, re.Match[str]]]:
        """Paths whose lower-case form ends with the pattern, and the match."""
        compiled = re.compile(rf"(?:^|.*/){pattern}$")
        return ((rel, match) for low, rel in self.files.items() if (match := compiled.match(low)))

    def one_each(self, pattern: str, key: Callable[[re.Match[str]], Key], what: str) -> dict[Key, str]:
        """{key of the match: path}; a second file with the same key is left out, as "second `what`"."""
        found: dict[Key, str] = {}
        for rel, match in self.matching(pattern):
            if (first := found.setdefault(key(match), rel)) != rel:
                self.report.left_out(f"second {what}", rel, 0, f"first is {first}")
        return found

    def frames(self, pattern: str) -> dict[tuple[str, ...], dict[int, str]]:
        """Images of films: {all groups of the pattern except the last, in capitals: {last group, the frame: image}}.

        If there are no images of a film, the film itself is read, with its frames counted from 1.
        """

        def key(match: re.Match[str]) -> tuple[tuple[str, ...], int]:
            *film, number = match.groups()
            return tuple(part.upper() for part in film), int(number)

        found: dict[tuple[str, ...], dict[int, str]] = {}
        for (film, number), rel in self.one_each(pattern, key, "image of a frame").items():
            found.setdefault(film, {})[number] = rel
        compiled, played = re.compile(rf"(?:^|.*/){pattern}$"), set[tuple[str, ...]]()
        for rel, frames in self.films.items():
            if match := compiled.match(frames[0].lower()):
                film, _ = key(match)
                if film in played:
                    self.report.left_out("second film of a recording", rel, 0, " ".join(film))
                elif film in found:
                    self.report.note("film whose frames are there as images, not read", rel)
                    self.copies.add(rel)
                else:
                    found[film] = dict(enumerate(frames, 1))
                    played.add(film)
        return found

    def find(self, name: str, file: str, line: int) -> str | None:
        """The image that a label file names; None, with a line in the report, if there is none."""
        path = posixpath.normpath(name.strip().replace("\\", "/"))
        if path.startswith(("/", "..")) or re.match(r"[a-zA-Z]:", path):
            self.report.left_out("path that leads out of the folder", file, line, name)
        elif (rel := self.files.get(path.lower()) or self.frame(path)) is None:
            self.report.left_out("label without an image", file, line, name)
        elif not path.lower().endswith(IMAGE_ENDINGS):
            self.report.left_out("label of a file that is no image", file, line, name)
        else:
            return rel
        return None

    def frame(self, path: str) -> str | None:
        """The frame of a film that a path such as `film.avi/12.png` means; None if there is no such film or frame."""
        folder, name = posixpath.split(path)
        frames = (
            self.films.get(self.files.get(folder.lower(), ""), []) if folder.lower().endswith(films.ENDINGS) else []
        )
        number = whole(posixpath.splitext(name)[0]) or 0
        return frames[number - 1] if 1 <= number <= len(frames) else None

    def by_stem(self) -> dict[str, list[str]]:
        """{file name in lower case without ending: images with that name}."""
        found: dict[str, list[str]] = {}
        for rel in self.images():
            found.setdefault(posixpath.splitext(posixpath.basename(rel))[0].lower(), []).append(rel)
        return found

    def one(self, images: list[str], file: str, line: int, name: str) -> str | None:
        """The only image in a list; None, with a line in the report, if there is not exactly one."""
        if len(images) == 1:
            return images[0]
        reason = "label for which several images have the name" if images else "label without an image"
        self.report.left_out(reason, file, line, name)
        return None

    def text(self, rel: str) -> str:
        """A text file in UTF-8 or, with a byte order mark, UTF-16; `InputError` names the first invalid line."""
        self.opened.add(rel)
        data = (self.root / rel).read_bytes()
        encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            found = encoding.removesuffix("-sig").upper()
            raise InputError(f"line {line}: found bytes that are not {found}, expected text in UTF-8") from None

    def rows(self, rel: str, separators: str = ";\t, ") -> Iterator[tuple[int, list[str]]]:
        """Lines of a table as (line number, stripped cells), separated by the first of `separators` that line 1 has.

        A blank stands for any number of blanks. Without a separator, a line is one cell. Blank lines are ignored. A
        file that is not text gives no rows but a line in the report; invalid lines are left out.
        """
        try:
            lines = self.text(rel).splitlines()
        except (ValueError, OSError) as error:
            self.report.left_out("label file that cannot be read", rel, 0, str(error))
            return
        start = next((line.strip() for line in lines if line.strip()), "")
        separator = next((mark for mark in separators if mark in start), None)
        for number, record in records(lines):
            try:
                if separator is None or separator == " ":
                    row = record[0].split() if separator else [record[0].strip().strip('"')]
                else:
                    row = next(csv.reader(record, delimiter=separator, skipinitialspace=True), [])
            except csv.Error as error:
                self.report.left_out("line that cannot be read", rel, number, str(error))
                continue
            if any(cell.strip() for cell in row):
                yield number, [cell.strip() for cell in row]

    def table(self, rel: str, *needed: str) -> tuple[tuple[str, ...], Iterator[tuple[int, dict[str, str]]]]:
        """Columns of a table with a header, and its rows as (line number, cells by column), named as by `folded`.

        Lines with fewer or more cells than the header are left out, and so is a table that has a column twice. If
        columns are `needed`, this raises an `InputError`, and so does a missing column.
        """
        if needed:
            try:
                self.text(rel)
            except ValueError as error:  # without this table there is nothing to import
                raise InputError(f"{self.root / rel}: {error}") from None
        rows, before = self.rows(rel), len(self.report.cases)
        first, header = next(rows, (1, []))
        columns = folded(tuple(header))
        trouble = next(
            (f"found column {name} twice, expected it once" for name, n in Counter(columns).items() if name and n > 1),
            None,
        )
        for name in needed:
            if name not in columns:
                trouble = trouble or f"found no column {name}, expected one"
        if trouble and needed:
            raise InputError(f"{self.root / rel}: line {first}: {trouble}")
        if not header and len(self.report.cases) == before:
            trouble = "found no line, expected a header"
        if trouble:
            self.report.left_out("table that cannot be read", rel, first, trouble)
            return (), iter(())

        def cells() -> Iterator[tuple[int, dict[str, str]]]:
            for line, row in rows:
                if len(row) == len(columns):
                    yield line, dict(zip(columns, row, strict=True))
                else:
                    expected = f"found {len(row)} cells, expected {len(columns)}"
                    self.report.left_out("line of another length than the header", rel, line, expected)

        return columns, cells()


def records(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Lines of a table with their numbers; lines that share a quoted cell are kept together.

    A quote that is not closed within ten lines is damage of its line only.
    """
    at = 0
    while at < len(lines):
        end = at + 1
        if lines[at].count('"') % 2:
            quoted = next((k for k in range(end, min(end + 10, len(lines))) if lines[k].count('"') % 2), None)
            if quoted is not None and re.match(r'[^"]*"\s*([;,\t]|$)', lines[quoted]):  # it ends a cell
                end = quoted + 1
        yield at + 1, lines[at:end]
        at = end


@lru_cache(maxsize=64)
def folded(header: tuple[str, ...]) -> tuple[str, ...]:
    """The names of columns for look-ups, in lower case unless two columns would then have the same name.

    Thus `x_0` (pixels) and `X_0` (millimetres) of OpenFace keep their names, as does `X_0` in any table with a
    `Z_0`. The names of AUs are always in lower case.
    """
    times = Counter(name.lower() for name in header)
    space = re.compile(r"[XYZ]_\d+" if "Z_0" in header else r"(?!)")

    def name_of(name: str) -> str:
        low = name.lower()
        return low if au_name(low) or not (times[low] > 1 or space.fullmatch(name)) else name

    return tuple(map(name_of, header))


def au_name(column: str) -> str | None:
    """`AU01_r`, `au1`, `1` -> `AU1`; None for anything else.

    A blink (AU45) is a short closing of the eyes (AU43). A single image cannot distinguish them, so both become AU43.
    """
    match = re.fullmatch(r"(?:au)?\s*0*([1-9]\d?)(?:_[rc])?", column.strip().lower())
    return ("AU43" if match[1] == "45" else f"AU{match[1]}") if match else None


def parse_number(cell: str) -> float:
    """A number with a decimal point or comma; `ValueError` for anything else."""
    text = cell.strip().replace(",", ".")
    if not NUMBER.fullmatch(text):
        raise ValueError(f"found {cell[:40]!r}, expected a number")
    return float(text)


def whole(cell: str) -> int | None:
    """A whole number of at most nine digits, such as `12` or `12.0`; None for anything else."""
    match = re.fullmatch(r"0*(\d{1,9})(?:[.,]0*)?", cell.strip(), re.ASCII)
    return int(match[1]) if match else None
