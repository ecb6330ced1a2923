"""The person on each image: from `people.csv`, else from the source, else from the folders.

The source folder of any form may have a file `people.csv`, for example to assign two films to one person. Its lines
are `name,person`; a name is an image, a film or a folder (with or without its parent folders and ending), or the
source's own name of a person.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from expr_lib import films
from expr_lib.importers.source import IMAGE_ENDINGS, PEOPLE, LabelledImage, Report, Tree

ENDINGS = (*IMAGE_ENDINGS, ".csv", ".txt", *films.ENDINGS)
HEADERS, NAMES = ("person", "subject"), ("name", "image", "film", "file", "folder")


def with_people(faces: list[LabelledImage], tree: Tree, report: Report) -> None:
    """Set the person of every image: from `people.csv`, else from the source, else the name of the folder.

    If all images without a person are in one folder, each counts as a separate person; a film is one person.
    """
    known, used = people(tree, report), set[str]()
    theirs = {face.image for face in faces if face.subject}
    alone = len({posixpath.dirname(rel) for rel in set(tree.images()) - tree.copies - theirs}) <= 1
    played = {face.image for face in faces if posixpath.dirname(face.image) in tree.films}
    for face in faces:
        if name := next((name for name in names_of(face) if name in known), None) if known else None:
            face.subject = known[name][0]
            used.add(name)
        elif not face.subject:
            face.subject = face.image if alone and face.image not in played else posixpath.dirname(face.image)
    for name, (_, line) in known.items():
        if name not in used:
            report.note("person of something that is not imported", tree.files[PEOPLE], line, name)


def names_of(face: LabelledImage) -> Iterator[str]:
    """Names that `people.csv` may use for an image, most specific first: image, person or film, label file, folders.

    Several people in one film have names such as `film 0` or `film Person_0`; that of the film alone is then ignored.
    """
    film, folder = plain(face.where[0]), posixpath.dirname(face.image)
    folders = [folder]
    while folder := posixpath.dirname(folder):
        folders.append(folder)
    several = plain(face.subject).rpartition(" ")[0] if face.subject == face.take else ""  # the film they are in
    for path in (face.image, face.subject, face.take, film, *folders):
        parts = plain(path).split("/")
        for start in range(len(parts)):  # the longest first
            if not (several and parts[-1] == posixpath.basename(several)):
                yield "/".join(parts[start:])


def plain(name: str) -> str:
    """A name in lower case, with / and without its ending."""
    name = name.strip().replace("\\", "/").lower().strip("/").removeprefix("./")
    return posixpath.splitext(name)[0] if name.endswith(ENDINGS) else name


def people(tree: Tree, report: Report) -> dict[str, tuple[str, int]]:
    """Read `people.csv`, if there is one -> {name as by `plain`: (person, line)}."""
    found: dict[str, tuple[str, int]] = {}
    if (file := tree.files.get(PEOPLE)) is None:
        return found
    name_at, person_at, width = 0, 1, 2
    for i, (line, row) in enumerate(tree.rows(file, ";\t,")):
        low = [cell.lower() for cell in row]
        if i == 0 and len(low) > 1 and (at := next((low.index(x) for x in HEADERS if x in low), None)) is not None:
            name_at = next((low.index(x) for x in NAMES if x in low), int(at == 0))
            person_at, width = at, len(low)
        elif len(row) != width or not row[name_at] or not row[person_at]:
            report.left_out("line that is not name,person", file, line, ",".join(row)[:40])
        elif (first := found.setdefault(plain(row[name_at]), (row[person_at], line)))[0] != row[person_at]:
            detail = f"{row[name_at]}: {row[person_at]}, before: {first[0]} in line {first[1]}"
            report.left_out("second person of one name", file, line, detail)
    return found
