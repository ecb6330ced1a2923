"""OpenFace: any folder of photographs, such as CelebA, with the tables of FaceLandmarkImg or FeatureExtraction.

Columns are found by stripped name, `AUxx_r` (intensity) before `AUxx_c` (presence). Source of the format:
Baltrusaitis et al., *OpenFace 2.0*, FG 2018, and the page "Output format" of its wiki; for the files beside
the tables, RecorderOpenFace.cpp of its source code.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from expr_lib.importers.frames import Entry, Lookup, in_common
from expr_lib.importers.labels import au_columns, landmarks
from expr_lib.importers.source import LabelledImage, Report, Tree, parse_number, whole

CONFIDENCE = 0.8
"""Rows with a lower confidence are left out, as OpenFace recommends."""


def labelled_images(tree: Tree, report: Report) -> Iterator[LabelledImage]:
    """`NAME.csv` labels the photograph `NAME.*` or, if it has a column `frame`, the frames of the film NAME.

    Each `face_id` of a film is a person. Images made by OpenFace are used only if the originals are missing.
    """
    lookup = Lookup(tree)
    person = identities(tree, lookup, report)
    found: list[tuple[str, bool, list[Entry]]] = []  # file, is it a film, its rows
    for file in tree.tables(".csv", ".txt"):
        if file.lower().endswith(".txt") and not says_au(tree, file):
            continue  # the tables of the first versions are .txt files
        columns, rows = tree.table(file)
        if not any(re.fullmatch(r"au\d+_[rc]", name) for name in columns):
            if columns:  # else it could not be read
                report.left_out("table without AU columns", file)
            continue
        film, n, entries = "frame" in columns, 0, list[Entry]()
        for n, (line, row) in enumerate(rows, 1):  # noqa: B007
            face, frame = whole(row.get("face_id") or row.get("face") or "0"), whole(row.get("frame") or "0")
            if doubtful(row):
                report.left_out("face not found for certain", file, line, f"confidence {row.get('confidence', '?')}")
            elif face is None or frame is None:
                odd = f"face_id {row.get('face_id', '')[:40]!r}, frame {row.get('frame', '')[:40]!r}"
                report.left_out("frame that is no number", file, line, odd)
            else:
                entries.append(Entry(line, file, frame, au_columns(row, report, file, line), landmarks(row), face))
        if n == 0:
            report.left_out("table without a row: no face was found", file)
        found.append((file, film, entries))
    own = {posixpath.splitext(file)[0].lower() for file, _, _ in found}  # paths of the tables
    leave_drawn_films(own, lookup)
    for file, film, entries in found:
        if film and (len(entries) != 1 or frames_of(file, entries, lookup) or not original(file, own, lookup)):
            yield from of_a_film(file, entries, lookup, report)
        else:
            yield from of_a_photograph(file, entries, own, person, lookup, report)
    tree.copies |= {rel for places in lookup.cut.values() for cut in places.values() for rel in cut.values()}


def says_au(tree: Tree, file: str) -> bool:
    """Whether a file begins like a table with action units."""
    with open(tree.root / file, "rb") as opened:
        return re.search(rb"AU\d\d_[rc]", opened.readline(100_000)) is not None


def of_a_photograph(
    file: str, entries: list[Entry], own: set[str], person: dict[str, str], lookup: Lookup, report: Report
) -> Iterator[LabelledImage]:
    images, tree = original(file, own, lookup), lookup.tree
    name = posixpath.splitext(posixpath.basename(file))[0]
    cut = {} if images else lookup.cut_faces(name, posixpath.dirname(file), file)
    for entry in entries:
        where = (file, entry.line)
        if aligned := cut.get((None, entry.face)):
            yield LabelledImage(aligned, aligned if len(entries) > 1 else "", entry.au, where)
        elif len(entries) > 1:
            report.left_out("several faces in one image", *where, f"{len(entries)} faces")
        elif image := tree.one(images, *where, name):
            yield LabelledImage(image, person.get(image, ""), entry.au, where, points=entry.points)


def original(file: str, own: set[str], lookup: Lookup) -> list[str]:
    """The photograph of a table, if possible not the copy beside the table, in which OpenFace has drawn.

    `own` are the paths of all tables, without ending; an image beside a table with its name belongs to that table.
    """
    tree, (folder, name) = lookup.tree, posixpath.split(posixpath.splitext(file)[0])
    drawn = written_names(posixpath.splitext(file)[0], tree).get("Output image")
    images = lookup.photographs.get(name.lower(), [])
    copies = {rel for rel in images if posixpath.dirname(rel) == folder and posixpath.basename(rel) == drawn}
    tree.copies |= copies
    images = [rel for rel in images if rel not in copies] or lookup.photographs.get(input_name(file, tree), [])
    beside = [rel for rel in images if posixpath.dirname(rel) == folder]
    others = [rel for rel in images if rel not in beside and posixpath.splitext(rel)[0].lower() not in own]
    shares = {rel: in_common(posixpath.dirname(rel), folder) for rel in others}
    rivals = lookup.named.get(name.lower(), [])  # an image belongs to the table with the most similar path
    others = [rel for rel in others if all(in_common(posixpath.dirname(rel), x) <= shares[rel] for x in rivals)]
    if others:
        tree.copies |= set(beside)
        most = max(shares[rel] for rel in others)
        return [rel for rel in others if shares[rel] == most]
    return [rel for rel in beside if rel not in tree.copies]


def leave_drawn_films(own: set[str], lookup: Lookup) -> None:
    """Forget the films on which OpenFace drew: beside a table, and named by its details or with another of that name.

    `own` are the paths of all tables, without ending.
    """
    tree = lookup.tree
    for film in [film for film in tree.films if film.lower().endswith(".avi")]:
        path = posixpath.splitext(film.lower())[0]
        places = lookup.films[posixpath.basename(path)]
        others = [x for x in places if posixpath.splitext(x)[0] not in own]
        if path in own and (others or "Output video" in written_names(path, tree)):
            tree.copies.add(film)
            for films in lookup.films.values():
                films.pop(film.lower(), None)


def written_names(path: str, tree: Tree) -> dict[str, str]:
    """The entries of OpenFace's `NAME_of_details.txt`, such as `Output image:one.jpg` -> {key: value}."""
    if (details := tree.files.get(f"{path}_of_details.txt".lower())) is None:
        return {}
    text = (tree.root / details).read_bytes()[:10_000].decode("utf-8", "replace")
    tree.opened.add(details)
    lines = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def input_name(file: str, tree: Tree) -> str:
    """The name, in lower case and without its ending, of the film or photograph of which a table was made.

    OpenFace's details tell it; its option `-of` can give the table another name. "" if there are no details.
    """
    source = written_names(posixpath.splitext(file)[0], tree).get("Input", "").replace("\\", "/").rstrip("/")
    return posixpath.splitext(posixpath.basename(source.lower()))[0]


def frames_of(file: str, entries: list[Entry], lookup: Lookup) -> dict[int, str]:
    """Complete frames of a film by OpenFace's numbers, which start at 1."""
    folder, name = posixpath.split(posixpath.splitext(file)[0])
    numbers = {entry.frame for entry in entries if entry.frame is not None}
    if own := lookup.frames(name, folder, numbers, 1, file, lookup.named.get(name.lower(), [])):
        return own
    return lookup.frames(input_name(file, lookup.tree), folder, numbers, 1, file, [])


def of_a_film(file: str, entries: list[Entry], lookup: Lookup, report: Report) -> Iterator[LabelledImage]:
    film = posixpath.splitext(file)[0]
    folder, name = posixpath.split(film)
    frames, cut = frames_of(file, entries, lookup), lookup.cut_faces(name, folder, file)
    alone = len({entry.face for entry in entries}) < 2
    for entry in entries:
        frame = entry.frame or 0
        image, where = frames.get(frame), (file, entry.line)
        aligned = cut.get((entry.face, frame)) or (cut.get((None, frame)) if alone else None)
        who = film if alone else f"{film} {entry.face}"
        take = f"{film} {entry.face}"
        if image and entry.points is not None:
            yield LabelledImage(image, who, entry.au, where, points=entry.points, take=take, face=entry.face)
        elif aligned or (image and alone):
            yield LabelledImage(aligned or image or "", who, entry.au, where, take=take)
        elif image:
            report.left_out("several faces in one image", *where, f"frame {frame}, and no landmarks")
        else:
            report.left_out("label without an image", *where, f"frame {frame}, face {entry.face} of {name}")


def doubtful(row: dict[str, str]) -> bool:
    """Whether OpenFace found no face or was not certain."""
    try:
        return not (
            parse_number(row.get("success", "1")) >= 1 and parse_number(row.get("confidence", "1")) >= CONFIDENCE
        )
    except ValueError:
        return True


def identities(tree: Tree, lookup: Lookup, report: Report) -> dict[str, str]:
    """Read CelebA's `identity_CelebA.txt`, if there is one -> {image: person}."""
    found: dict[str, str] = {}
    for rel, _ in tree.matching(r"identity_celeba\.txt"):
        for line, row in tree.rows(rel):
            if len(row) < 2:
                report.left_out("line that is not image and person", rel, line, " ".join(row)[:40])
                continue
            name, who = " ".join(row[:-1]), row[-1]
            for image in lookup.photographs.get(posixpath.splitext(name)[0].lower(), []):
                if found.setdefault(image, who) != who:
                    report.left_out("second person of an image", rel, line, f"{image}: {who}, before: {found[image]}")
    return found
