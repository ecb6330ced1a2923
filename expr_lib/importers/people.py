"""Who is who: the source's own word, else ``people.csv``, else the folders.

``people.csv`` may lie in the source folder of any form, so that two films of one person are one person. Its lines are
``name,person``; a name is an image, a film or a folder (with or without the folders above it and its ending), or what
the form itself calls a person.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from expr_lib.importers.source import IMAGE_ENDINGS, PEOPLE, Face, Report, Tree

ENDINGS = (*IMAGE_ENDINGS, ".csv", ".txt", ".mp4", ".avi", ".mov", ".mkv", ".webm")
HEADERS, NAMES = ("person", "subject"), ("name", "image", "film", "file", "folder")


def with_people(faces: list[Face], tree: Tree, report: Report) -> None:
    """Give every face its person: from ``people.csv``, where that knows it, else as the source or the folders say.

    Where all images that are nobody's lie in one folder, each is a person of its own.
    """
    known, used = people(tree, report), set[str]()
    theirs = {face.image for face in faces if face.subject}
    alone = len({posixpath.dirname(rel) for rel in set(tree.images()) - tree.copies - theirs}) <= 1
    for face in faces:
        if name := next((name for name in names_of(face) if name in known), None) if known else None:
            face.subject = known[name][0]
            used.add(name)
        elif not face.subject:
            face.subject = face.image if alone else posixpath.dirname(face.image)
    for name, (_, line) in known.items():
        if name not in used:
            report.note("person of something that is not imported", tree.files[PEOPLE], line, name)


def names_of(face: Face) -> Iterator[str]:
    """What ``people.csv`` may call a face, the closest name first: image, person or film, label file, folders.

    Of several people in one film each has a name of its own, ``film 0``; that of the film alone says nothing.
    """
    film, folder = plain(face.where[0]), posixpath.dirname(face.image)
    folders = [folder]
    while folder := posixpath.dirname(folder):
        folders.append(folder)
    one_of_several = plain(face.subject).startswith(film + " ")
    for path in (face.image, face.subject, face.take, film, *folders):
        parts = plain(path).split("/")
        for start in range(len(parts)):  # the longest first
            if not (one_of_several and parts[-1] == posixpath.basename(film)):
                yield "/".join(parts[start:])


def plain(name: str) -> str:
    """A name in lower case, with /, without ending."""
    name = name.strip().replace("\\", "/").lower().strip("/").removeprefix("./")
    return posixpath.splitext(name)[0] if name.endswith(ENDINGS) else name


def people(tree: Tree, report: Report) -> dict[str, tuple[str, int]]:
    """``people.csv``, where the folder has it: name as of :func:`plain` -> person, and in which line that is said."""
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
            told = f"{row[name_at]}: {row[person_at]}, before: {first[0]} in line {first[1]}"
            report.left_out("second person of one name", file, line, told)
    return found
