"""Matching the rows of tables with images: photographs by their names, frames of films by their numbers.

Tables and images are often in different folders. If several images have the right name, the one is used whose path has
the longest common end with the path in the table, or with that of the table.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from expr_lib.films import ENDINGS
from expr_lib.importers.source import IMAGE_ENDINGS, LabelledImage, Report, Tree

ALIGNED = "_aligned"
"""Ending of the name of the folder in which OpenFace writes cropped faces."""
Images = TypeVar("Images", bound=Sized)
SURPLUS = r"(?:frames?|images?|imgs?)"
"""Words that may follow the name of a film, or stand between name and number."""


@dataclass(slots=True)
class Entry:
    """One row of a table of faces."""

    line: int
    source: str  # path of the photograph or film as in the table, with /
    frame: int | None  # None = a photograph
    au: dict[str, float]
    points: np.ndarray | None
    face: int = 0  # number of the person in a film of several
    person: str = ""  # or the name that the program gave to the person in this film


def split(path: str) -> tuple[str, str, str]:
    """Folder, name and ending of a path, in lower case; an ending that is not that of an image stays in the name."""
    folder, name = posixpath.split(path.lower())
    stem, ending = posixpath.splitext(name)
    return (folder, stem, ending) if ending in IMAGE_ENDINGS else (folder, name, "")


def in_common(a: str, b: str) -> int:
    """Number of folders at the ends of two paths of folders that are equal."""
    pairs = zip(reversed(a.lower().split("/")), reversed(b.lower().split("/")), strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(a.count("/"), b.count("/")) + 1 if a and b else 0)


class Lookup:
    """All images of a tree by name, by film and, for those cropped by OpenFace, by face and frame."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.photographs: dict[str, list[str]] = {}  # name without ending -> images
        self.films: dict[str, dict[str, list[str]]] = {}  # name of a film -> place of its frames -> frames in order
        self.cut: dict[str, dict[str, dict[tuple[int | None, int], str]]] = {}  # ... -> face, frame -> cropped face
        self.nameless: dict[str, dict[str, list[str]]] = {}  # folder -> folder frames/ in it -> frames in order
        self.tables = Counter[str]()  # number in each folder
        self.named: dict[str, list[str]] = {}  # name of a table -> folders of all tables with that name
        for rel in tree.tables(".csv", ".txt"):
            folder, name = posixpath.split(rel.lower())
            self.tables[folder] += 1
            self.named.setdefault(posixpath.splitext(name)[0], []).append(folder)
        for rel, frames in tree.films.items():
            stem = posixpath.splitext(posixpath.basename(rel.lower()))[0]
            for name in {stem, re.sub(rf"(?<=.)[\W_]+{SURPLUS}$", "", stem)}:
                self.films.setdefault(name, {})[rel.lower()] = frames
        for rel in tree.images():
            folder, stem, _ = split(rel)
            inner = posixpath.basename(folder)
            match = re.fullmatch(r"(?:frame|face)_det_(?:(\d{1,9})_)?(\d{1,9})", stem, re.ASCII)
            if inner.endswith(ALIGNED):
                if match:
                    face = int(match[1]) if match[1] else None
                    places = self.cut.setdefault(inner.removesuffix(ALIGNED), {})
                    places.setdefault(folder, {})[face, int(match[2])] = rel
                continue
            self.photographs.setdefault(stem, []).append(rel)
            if re.fullmatch(SURPLUS, inner):
                self.nameless.setdefault(posixpath.dirname(folder), {}).setdefault(folder, []).append(rel)
                inner = posixpath.basename(posixpath.dirname(folder))
            series = re.fullmatch(rf"(?!\d+$)(.+?)[\W_]*(?:(?<=[\W_]){SURPLUS}[\W_]*)?\d+", stem, re.ASCII)
            names = {re.sub(rf"^{SURPLUS}[\W_]+(?=.)|(?<=.)[\W_]+{SURPLUS}$", "", inner): folder, inner: folder}
            if series:
                names.setdefault(series[1], f"{folder}/{series[1]}*")
            for name, where in names.items():
                self.films.setdefault(name, {}).setdefault(where, []).append(rel)

    def photograph(self, path: str) -> tuple[list[str], int]:
        """Images that match a path best, and how well: 0 = only the name without its ending is equal."""
        folder, stem, ending = split(path)
        best, found = -1, list[str]()
        for rel in self.photographs.get(stem, []):
            other, _, its_ending = split(rel)
            share = 2 * in_common(folder, other) + (ending == its_ending)
            if share >= best:
                found = [*(found if share == best else []), rel]
                best = share
        return found, best

    def frames(
        self, film: str, near: str, numbers: set[int], first: int, file: str, rivals: Iterable[str]
    ) -> dict[int, str]:
        """Frames of a film by the numbers in a table, which start at `first`; `near` is the folder of the table.

        `rivals` are the folders of all films with that name. The film itself is read if its frames are not there as
        images. The numbers in the names of the images are used if they are those of the table, or start at the other
        first number (0 or 1); otherwise, if there is one image for each number, their order is used. The last two cases
        are noted in the report.
        """
        places, folder = self.films.get(film.lower(), {}), posixpath.dirname(file).lower()
        if not places and self.tables[folder] == 1:
            places = self.nameless.get(folder, {})
        images = self.nearest(places, near, file, rivals) or []
        if images and posixpath.dirname(images[0]) in self.tree.films:
            return in_step(images, numbers, first, file, self.tree.report)
        own: dict[int, str] = {}
        for rel in images:
            if match := re.search(r"(\d{1,9})$", split(rel)[1], re.ASCII):
                own.setdefault(int(match[1]), rel)
        other = 1 - first  # the other possible first number
        shifted = {n + first - other: rel for n, rel in own.items()} if own and min(own) == other else {}
        if shifted and (numbers <= shifted.keys() or not (numbers <= own.keys() or len(images) == len(numbers))):
            self.tree.report.note(f"frames of the images counted from {other}, those of the table from {first}", file)
            return shifted
        if numbers and not numbers <= own.keys() and len(images) == max(numbers) - first + 1:
            self.tree.report.note("frames of the images matched with those of the table in the order of names", file)
            return dict(enumerate(images, first))
        return own

    def cut_faces(self, film: str, near: str, file: str) -> dict[tuple[int | None, int], str]:
        """Faces that OpenFace cropped from a film or photograph: {(face or None, frame): image}."""
        return self.nearest(self.cut.get(film.lower(), {}), near, file, self.named.get(film.lower(), [])) or {}

    def nearest(self, places: dict[str, Images], near: str, file: str, rivals: Iterable[str]) -> Images | None:
        """The images in the place whose path is most similar to `near`, unless `rivals` has a more similar one.

        If several are equally similar and none has more than twice as many images as each other, the result is None,
        with a line in the report.
        """
        share = {where: in_common(posixpath.dirname(where), near) for where in sorted(places)}
        for where in list(share):
            if any(in_common(posixpath.dirname(where), rival) > share[where] for rival in rivals):
                del share[where]
        if unpacked := {where: n for where, n in share.items() if not where.endswith(ENDINGS)}:
            self.tree.copies |= {self.tree.files[where] for where in share.keys() - unpacked.keys()}
            share = unpacked
        best = [where for where in share if share[where] == max(share.values())]
        most = max((len(places[where]) for where in best), default=0)
        best = [where for where in best if 2 * len(places[where]) >= most]
        if len(best) > 1:
            self.tree.report.left_out("film whose frames lie in several places", file, 0, ", ".join(best))
        return places[best[0]] if len(best) == 1 else None


def in_step(frames: list[str], numbers: set[int], first: int, file: str, report: Report) -> dict[int, str]:
    """Frames of a film by the numbers in a table, which should start at `first`.

    A table with a frame 0 counts from 0, and one whose last number is one beyond the film counts from 1. If that is not
    `first`, or if a table without gaps ends one frame before or after the film, the report says so.
    """
    last, counted = max(numbers, default=0), first
    if numbers and first == 1 and 0 in numbers:
        counted = 0
    elif first == 0 and last == len(frames) and 0 not in numbers:
        counted = 1
    if counted != first:
        report.note(f"table that counts the frames of its film from {counted}, not from {first}", file)
    rows = last - counted + 1
    if abs(rows - len(frames)) == 1 and len(numbers) == rows:
        which = "more" if rows > len(frames) else "less"
        report.note(f"table with one row {which} than its film has frames", file, 0, f"{rows} and {len(frames)}")
    return dict(enumerate(frames, counted))


def matched(entries: list[Entry], lookup: Lookup, file: str, first: int, report: Report) -> Iterator[LabelledImage]:
    """The images of a table that names its photographs or films; frames are counted from `first`.

    Each `person` of a film is a person. Two faces in one frame are used if they have different ones, and landmarks.
    """
    near, films = posixpath.dirname(file), dict[str, dict[int, str]]()
    sources = {entry.source: None for entry in entries if entry.frame is not None}
    for film in sources:
        folder, name = posixpath.split(film)
        numbers = {entry.frame for entry in entries if entry.source == film and entry.frame is not None}
        stem = posixpath.splitext(name)[0]
        rivals = [
            posixpath.dirname(other) for other in sources if posixpath.splitext(posixpath.basename(other))[0] == stem
        ]
        films[film] = lookup.frames(stem, folder or near, numbers, first, file, rivals)
    photographs = {entry.source: lookup.photograph(entry.source) for entry in entries if entry.frame is None}
    closest: dict[str, int] = {}  # image -> similarity of the path that matches it best
    for found, share in photographs.values():
        for rel in found:
            closest[rel] = max(share, closest.get(rel, -1))
    persons: dict[str, set[str]] = {}  # of each source
    for entry in entries:
        persons.setdefault(entry.source, set()).add(entry.person)
    people = {film: sorted(persons[film]) for film in sources}
    several = Counter((entry.source, entry.frame) for entry in entries)
    alike = Counter((entry.source, entry.frame, entry.person) for entry in entries)
    image: str | None
    for entry in entries:
        what = entry.source if entry.frame is None else f"{entry.source}: frame {entry.frame}"
        n = several[entry.source, entry.frame]
        if n > 1 and (entry.points is None or alike[entry.source, entry.frame, entry.person] > 1):
            report.left_out("several faces in one image", file, entry.line, f"{what}: {n} faces")
        elif entry.frame is None:
            found, share = photographs[entry.source]
            found = [rel for rel in found if closest[rel] == share]
            if image := lookup.tree.one(found, file, entry.line, what):
                yield LabelledImage(image, "", entry.au, (file, entry.line), points=entry.points)
        elif image := films[entry.source].get(entry.frame):
            who, take, where = posixpath.splitext(entry.source)[0], entry.source, (file, entry.line)
            there = people[entry.source]
            if len(there) > 1 and not entry.person:
                report.left_out("face of nobody known in a film of several people", *where, what)
                continue
            if len(there) > 1:
                who = take = f"{who} {entry.person}"
            face = there.index(entry.person)
            yield LabelledImage(image, who, entry.au, where, points=entry.points, take=take, face=face)
        else:
            report.left_out("label without an image", file, entry.line, what)
