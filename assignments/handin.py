"""What students hand in: which assignment it is, its notebook read within limits, and its cells put in order.

Nothing is followed that leads elsewhere, nothing is unpacked, and no more is read than a notebook can need. Cells that
were copied, lost their marks or went missing are mended where it is clear what they are; the rest is said.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from expr_lib.files import open_regular

MAX_BYTES = 20_000_000
MAX_INSIDE = 2_000
MAX_CELLS = 1_000
ADDED = r"(?:[ _.-]*(?:\(\d+\)|(?:copy|kopie|copie|copia)\d*|(?:final|v?\d{1,3})))*"
"""What browsers, file managers and people add to a name: `1_adversary (1)`, `1_adversary - Copy`, `1_adversary_v2`."""


def assignment_of(file: Path, names: Iterable[str]) -> str | None:
    """The assignment that a file's name says, be it downloaded twice or copied; None for another file."""
    if file.suffix.lower() not in (".ipynb", ".zip"):
        return None
    return next((name for name in names if re.fullmatch(re.escape(name) + ADDED, file.stem, re.IGNORECASE)), None)


def best_first(files: Iterable[Path], name: str) -> list[Path]:
    """Hand-ins of one student for one assignment: the one with the very name first, then the last copy, then zips."""
    digits = {file: [int(n) for n in re.findall(r"\d+", file.stem[len(name) :])] for file in files}
    return sorted(digits, key=lambda f: (f.stem != name, [-n for n in digits[f]], f.suffix.lower() == ".zip", f.name))


def read(file: Path, name: str) -> NotebookNode:
    """The notebook in a file or in a zip; `ValueError` says in plain words what is wrong with it."""
    if file.is_symlink():
        raise ValueError(f"{file.name}: a link, not followed; ask for the file itself")
    if not file.is_file():
        raise ValueError(f"{file.name}: a folder or no regular file; put the notebook itself here")
    try:
        with open_regular(file, follow=False) as opened:
            if os.fstat(opened.fileno()).st_size > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES // 10**6} MB")
            data = from_zip(opened, name) if file.suffix.lower() == ".zip" else opened.read(MAX_BYTES + 1)
        return parsed(data)
    except Exception as error:  # whatever a damaged file makes zipfile, json or nbformat say
        own = type(error) is ValueError
        found = str(error) if own else f"damaged ({type(error).__name__})"
        raise ValueError(f"{file.name}: not a readable notebook: {one_line(found)}; ask for it again") from None


def from_zip(opened, name: str) -> bytes:
    """The only notebook of an assignment in a zip. Bytes are counted as they are read: what a zip says may lie."""
    with zipfile.ZipFile(opened) as archive:
        infos = archive.infolist()
        if len(infos) > MAX_INSIDE:
            raise ValueError(f"{len(infos)} files inside, expected at most {MAX_INSIDE}")
        inside = [i for i in infos if i.filename.endswith(".ipynb") and "__MACOSX" not in i.filename]
        inside = [i for i in inside if assignment_of(Path(i.filename), [name])]
        inside = [i for i in inside if Path(i.filename).stem == name] or inside
        if len(inside) != 1:
            raise ValueError(f"{len(inside)} files {name}.ipynb inside, expected one")
        if inside[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("packed in an unusual way")
        with archive.open(inside[0]) as member:
            data = member.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES // 10**6} MB when unpacked")
    return data


def parsed(data: bytes) -> NotebookNode:
    if not data.strip():
        raise ValueError("the file is empty")
    try:
        plain = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("no text in UTF-8") from None
    except json.JSONDecodeError as error:  # its own words only: the text beside them may be anybody's
        raise ValueError(f"line {error.lineno} column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(plain, dict) or not isinstance(plain.get("nbformat"), int):
        raise ValueError("no notebook")
    cells = plain.get("cells")
    if isinstance(cells, list):
        if len(cells) > MAX_CELLS:
            raise ValueError(f"{len(cells)} cells, expected at most {MAX_CELLS}")
        for i, cell in enumerate(cells):
            if isinstance(cell, dict):  # what only a run leaves behind is not needed, and may be large or broken
                cell["id"] = f"cell-{i}"
                cell.get("metadata") or cell.update(metadata={})
                if cell.get("cell_type") == "code":
                    cell |= {"outputs": [], "execution_count": None}
    notebook = nbformat.reads(json.dumps(plain), as_version=4)
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        place = "/".join(map(str, getattr(error, "absolute_path", None) or [])) or "its outline"
        raise ValueError(f"{place} is not as in a notebook") from None
    return notebook


def one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]


# -- the cells -----------------------------------------------------------------------------------------------------


def mend(notebook: NotebookNode, release: NotebookNode) -> tuple[NotebookNode, list[str]]:
    """A hand-in with every graded cell there, marked, and once -> the notebook and, in plain words, what was wrong.

    Marks, points and tags are those of the release, whatever the hand-in says. Of a cell that is there twice the last
    answer counts; copies that hold no answer go. A cell without its mark is found by its text, by what it defines, or
    by its place.
    """
    known = {about(c)["grade_id"]: c for c in release.cells if about(c)}
    cells = deepcopy(notebook.cells)
    ids = [about(c).get("grade_id") for c in cells]
    ids = [i if isinstance(i, str) and i in known else None for i in ids]
    lost = [i for i in known if i not in ids]
    bare = sum(not about(c) for c in cells)
    remarks = []

    twice = sorted({i for i in ids if i and ids.count(i) > 1}, key=list(known).index)
    for name in twice:
        places = [p for p, i in enumerate(ids) if i == name]
        answered = [p for p in places if cells[p].source.strip() != known[name].source.strip()]
        kept = answered[-1] if answered and not about(known[name])["locked"] else places[-1]
        for p in places:
            if p != kept:
                ids[p] = None
                if p not in answered or about(known[name])["locked"]:
                    cells[p] = None
    if twice:
        remarks.append(f"there more than once, the last answer counts: {' '.join(twice)}")

    prose = {c.source.strip() for c in release.cells if not about(c)}
    again = [name for name in lost if found(name, known, cells, ids, prose)] if bare else []
    if again:
        remarks.append(f"had lost their marks and were found again: {' '.join(again)}")
        if missing := [name for name in lost if name not in again]:
            remarks.append(f"not found: {' '.join(missing)}")
    put_back(known, cells, ids)

    mended = []
    for cell, name in zip(cells, ids, strict=True):
        if cell is not None:
            cell.metadata = deepcopy(known[name].metadata) if name else NotebookNode()
            mended.append(cell)
            cell.id = f"cell-{len(mended)}"
    result = nbformat.v4.new_notebook(cells=mended, metadata=deepcopy(release.metadata))
    result.nbformat_minor = 5
    return result, remarks


def about(cell: NotebookNode | None) -> dict:
    marks = cell.metadata.get("nbgrader") if cell is not None else None
    return marks if isinstance(marks, dict) else {}


def defines(source: str) -> set[str]:
    """Names that a cell defines at its outermost level."""
    return {a or b for a, b in re.findall(r"^(?:(?:def|class)\s+(\w+)|(\w+)\s*=(?!=))", source, re.MULTILINE)}


def found(name: str, known: dict, cells: list, ids: list, prose: set[str]) -> bool:
    """Mark the cell that must be `name` in a hand-in whose cells have lost their marks; False where none is clear."""
    wanted = known[name]
    free = [p for p, cell in enumerate(cells) if cell is not None and ids[p] is None]
    same = [p for p in free if cells[p].source.strip() == wanted.source.strip()]
    if not same and not about(wanted)["locked"]:
        free = [p for p in free if cells[p].cell_type == wanted.cell_type and cells[p].source.strip() not in prose]
        texts = {c.source.strip() for n, c in known.items() if about(c)["locked"]}
        free = [p for p in free if cells[p].source.strip() not in texts]
        if names := defines(wanted.source):
            same = [p for p in free if names <= defines(cells[p].source)]
        else:
            low, high = neighbours(name, known, cells, ids)
            same = [p for p in free if low < p < high]
    if same:
        ids[same[-1]] = name
    return bool(same)


def neighbours(name: str, known: dict, cells: list, ids: list) -> tuple[int, int]:
    """Places of the graded cells before and after one that is missing, by its mark or by its text."""
    order = list(known)
    at = order.index(name)

    def place(other: str) -> int | None:
        if other in ids:
            return ids.index(other)
        text = known[other].source.strip()
        return next((p for p, c in enumerate(cells) if c is not None and c.source.strip() == text), None)

    before = [p for other in order[:at] if (p := place(other)) is not None]
    after = [p for other in order[at + 1 :] if (p := place(other)) is not None]
    low = before[-1] if before else -1
    high = next((p for p in after if p > low), len(cells))
    return low, high


def put_back(known: dict, cells: list, ids: list) -> None:
    """Put a cell that is gone where it was: an answer after the cell above it, a check before the cell below it."""
    for name, wanted in known.items():
        if name not in ids:
            low, high = neighbours(name, known, cells, ids)
            place = high if about(wanted)["grade"] and about(wanted)["locked"] else low + 1
            cells.insert(place, deepcopy(wanted))
            ids.insert(place, name)
