"""The course and the app for those who installed the package: `expr-lib course FOLDER` and `expr-lib app`.

Annotations are values here, tyro reads them: no `from __future__ import annotations`.
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
"""What the course consists of, with all that its notebooks link to."""


def source() -> Path:
    """The folder that holds `PARTS`: a part of the wheel or, if the package is used where it is developed, its root."""
    place = PACKAGE / "course" if (PACKAGE / "course").is_dir() else PACKAGE.parent
    if not (place / "notebooks" / "00_start_here.ipynb").is_file():
        raise InputError(f"{place}: found no notebooks, expected the course; install the package again")
    return place


def course_files() -> Iterator[tuple[Path, Path]]:
    """Each file of the course, and its path in a folder that is laid out as the repository."""
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

    A file that is there already is never written over, so the command may be run again after an update.

    Args:
        folder: where to put the course; made if it is missing.
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
                print(f"{target}: differs from the course, left as it is; remove it to get the course's")
    print(f"{folder}: {written} files written. Begin with")
    print(f"jupyter lab --notebook-dir={folder} {folder / 'notebooks' / '00_start_here.ipynb'}")


def app(port: int = 8866, browser: bool = True) -> None:
    """Mix expressions with sliders, in the browser; Ctrl-C ends it. Needs the extra `course`.

    Args:
        port: of the address http://127.0.0.1:PORT.
        browser: open the page.
    """
    from voila.app import main

    page = source() / "notebooks" / "app"
    options = [f"--Voila.config_file_paths={page}", f"--port={count('--port', port, 1, 65_535)}"]
    main([str(page / "mixer.ipynb"), *options, *([] if browser else ["--no-browser"])])
