"""The course and the app in an installed package: `expr-lib course FOLDER` and `expr-lib app`.

tyro reads the annotations at run time, so this file has no `from __future__ import annotations`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from expr_lib import WEIGHTS
from expr_lib.apps.options import count, may_write
from expr_lib.errors import InputError
from expr_lib.files import open_regular, replace_file

PACKAGE = WEIGHTS.parent
PARTS = ("notebooks", "data", "assignments", "benchmarks")
"""Folders of the course, with everything that its notebooks link to."""


def source() -> Path:
    """The folder with `PARTS`: `course` in an installed package, or the root of the repository."""
    place = PACKAGE / "course" if (PACKAGE / "course").is_dir() else PACKAGE.parent
    if not (place / "notebooks" / "00_start_here.ipynb").is_file():
        raise InputError(f"{place}: found no notebooks, expected the course; install the package again")
    return place


def course_files() -> Iterator[tuple[Path, Path]]:
    """Each file of the course, and its path in a folder with the layout of the repository."""
    root = source()
    for part in PARTS:
        for path in sorted((root / part).rglob("*")):
            inside = path.relative_to(root)
            if path.is_file() and not any(name.startswith((".", "__pycache__")) for name in inside.parts):
                yield path, inside
    for page in (PACKAGE / "README.md", *sorted(WEIGHTS.glob("*.md"))):
        yield page, "expr_lib" / page.relative_to(PACKAGE)


def course(folder: Annotated[Positional[Path], arg(metavar="FOLDER")] = Path("expr-course")) -> None:
    """Copy the course into a folder: notebooks, figures, data and assignments.

    Existing files are never overwritten, so the command can be run again after an update.

    Args:
        folder: folder for the course, created if it is missing.
    """
    may_write("FOLDER", folder, folder=True)
    written = 0
    for path, inside in course_files():
        target, content = folder / inside, path.read_bytes()
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_file(target, content)
            written += 1
            continue
        with open_regular(target) as there:
            if there.read() != content:
                print(f"{target}: differs from that of the course and was kept; remove it to get the course's file")
    print(f"{folder}: {written} files written. Start with")
    print(f"jupyter lab --notebook-dir={folder} {folder / 'notebooks' / '00_start_here.ipynb'}")


def app(port: int = 8866, browser: bool = True) -> None:
    """Mix expressions with sliders in the browser; Ctrl-C ends the app. Needs the extra `course`.

    Args:
        port: port of the address http://127.0.0.1:PORT.
        browser: open the page in the browser.
    """
    from voila.app import main

    page = source() / "notebooks" / "app"
    options = [f"--Voila.config_file_paths={page}", f"--port={count('--port', port, 1, 65_535)}"]
    main([str(page / "mixer.ipynb"), *options, *([] if browser else ["--no-browser"])])
