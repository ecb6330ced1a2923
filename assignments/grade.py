"""The assignments for students, and points for what comes back: as little as possible around nbgrader.

python assignments/grade.py release             build/assignments/*.zip: what a student gets
python assignments/grade.py SUBMISSIONS         build/grades/grades.csv and build/grades/feedback/, where SUBMISSIONS
                                                holds <student>/<assignment>.ipynb or <student>/<assignment>.zip
"""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import handin
import isolated
import nbformat
import sandbox
from nbgrader.apps import NbGraderAPI
from nbgrader.coursedir import CourseDirectory
from traitlets.config.loader import PyFileConfigLoader

from expr_lib.apps.options import one_line
from expr_lib.files import replace_file, replacing, writing

HERE = Path(__file__).resolve().parent
NAMES = sorted(folder.name for folder in (HERE / "source").iterdir() if folder.is_dir())
COLUMNS = ["student", "assignment", "points", "of", "by hand", "parts", "message"]
ROOM = 4 << 20  # bytes; more than a notebook, its page and its grades need


def open_course() -> NbGraderAPI:
    """nbgrader with our settings; `OSError` if its folder cannot be made or the disk is full."""
    warnings.filterwarnings("ignore", module="nbgrader")  # of its use of SQLAlchemy; a lecturer can do nothing about it
    logging.getLogger("tornado.application").addHandler(logging.NullHandler())  # what nbgrader says twice, said once
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # nbgrader calls alembic
    config = PyFileConfigLoader("nbgrader_config.py", path=str(HERE)).load_config()
    Path(config.CourseDirectory.release_directory).mkdir(parents=True, exist_ok=True)
    Path(config.Exchange.root).mkdir(exist_ok=True)
    expect_room(Path(config.CourseDirectory.release_directory))
    return NbGraderAPI(CourseDirectory(config=config), config=config)


def expect_room(folder: Path) -> None:
    """`OSError` if the disk has no room for one more hand-in, here or where submissions run; leaves nothing behind."""
    for place in (folder, Path(tempfile.gettempdir())):
        with writing(place), tempfile.TemporaryFile(dir=place, buffering=0) as file:
            for _ in range(ROOM >> 16):
                file.write(bytes(1 << 16))


def release(api: NbGraderAPI, names: Iterable[str]) -> Path:
    """Write the students' notebooks and enter the checks in the gradebook -> the folder of the release."""
    for name in names:
        done = api.generate_assignment(name)
        if not done["success"]:
            expect_room(Path(api.coursedir.release_directory))
            raise SystemExit(f"{name}: {why(done)}")
    return Path(api.coursedir.release_directory)


def pack(folder: Path) -> None:
    """One zip for each assignment of a release: the notebook, its data, and how to go about it."""
    to = folder.parents[1] / "assignments"
    to.mkdir(exist_ok=True)
    for name in NAMES:
        files = {f"{name}/{path.name}": path for path in sorted((folder / name).iterdir())}
        with replacing(to / f"{name}.zip") as out, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for place, path in (files | {f"{name}/README.md": HERE / "STUDENTS.md"}).items():
                archive.write(path, place)
        print(to / f"{name}.zip")


def why(done: dict[str, str]) -> str:
    """The line of nbgrader's log that names the error."""
    log = f"{done.get('log') or ''}\n{done.get('error') or ''}"
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["nbgrader does not say why"]
    if any("DeadKernelError" in line for line in lines):
        return "its program ended before its last cell: it took too much memory or time, or ended itself"
    return handin.one_line(next((line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)), lines[-1]))


def grade_one(api: NbGraderAPI, student: str, file: Path, name: str) -> dict[str, object]:
    """Grade one file -> what stands in its row of grades.csv."""
    try:
        notebook = handin.read(file, name)
    except ValueError as error:
        return {"message": str(error)}
    release = nbformat.read(Path(api.coursedir.release_directory, name, f"{name}.ipynb"), as_version=4)
    notebook, remarks = handin.mend(notebook, release)
    if file.stem != name:
        remarks.insert(0, f"{file.name}: taken for {name}")
    text = nbformat.writes(notebook)
    place = Path(student, name, f"{name}.ipynb")
    target, graded = api.coursedir.submitted_directory / place, api.coursedir.autograded_directory / place
    source = HERE / "source" / name / f"{name}.ipynb"
    old = graded.exists() and graded.stat().st_mtime > source.stat().st_mtime and target.read_text("utf-8") == text
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, text.encode())
    for step in (api.generate_feedback,) if old else (api.autograde, api.generate_feedback):
        done = step(name, student)
        if not done["success"]:
            return {"message": f"{file.name}: could not be graded: {why(done)}"}
    with api.gradebook as book:
        handed_in = book.find_submission(name, student)
        grades = {g.cell.name: g for g in handed_in.notebooks[0].grades}
        waiting = [part for part, g in grades.items() if g.needs_manual_grade]
        parts = [f"{part} {g.score:g}/{g.max_score:g}" for part, g in sorted(grades.items())]
        return {
            "points": f"{handed_in.score:g}", "of": f"{handed_in.max_score:g}", "by hand": " ".join(waiting),
            "parts": "; ".join(parts), "message": "; ".join(remarks),
        }  # fmt: skip


def rows(api: NbGraderAPI, folder: Path) -> Iterator[dict[str, object]]:
    """A row for each file of a student. What goes wrong stands in its message and stops nobody else."""
    student = folder.name
    if folder.is_symlink():
        yield {"student": student, "message": "a link, not followed; put the folder itself here"}
        return
    files = sorted(f for f in folder.iterdir() if not f.name.startswith("."))
    names = {file: handin.assignment_of(file, NAMES) for file in files}
    first = {
        name: handin.best_first([f for f in files if names[f] == name], name)[0] for name in {*names.values()} - {None}
    }
    for file in files:
        row: dict[str, object] = {"student": student, "assignment": names[file] or file.stem}
        name = names[file]
        if re.search(r"[*?\[\]+\\\x00-\x1f]", student):
            yield row | {"message": "the name of the student's folder holds one of * ? [ ] + \\; rename it"}
        elif name is None:
            yield row | {"message": f"{file.name}: not an assignment; expected {', '.join(NAMES)} as .ipynb or .zip"}
        elif file != first[name]:
            yield row | {
                "message": f"{file.name}: not graded, because {first[name].name} was; keep the one that counts"
            }
        else:
            try:
                yield row | grade_one(api, student, file, name)
            except Exception as error:  # one hand-in must never cost the others their grades
                said = handin.one_line(f"{type(error).__name__}: {error}")
                yield row | {"message": f"{file.name}: could not be graded: {said}"}


def safe(cell: object) -> str:
    """A cell of the table that no spreadsheet takes for a formula."""
    text = " ".join(str(cell).split())
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def grade(api: NbGraderAPI, submissions: Path) -> None:
    """Grade all files -> grades.csv; `OSError` on a full disk, with the rows so far in grades.partial."""
    folders = sorted(f for f in submissions.iterdir() if f.is_dir() and not f.name.startswith("."))
    files = [f for folder in folders if not folder.is_symlink() for f in folder.iterdir() if not f.name.startswith(".")]
    if not files:
        raise SystemExit(f"{submissions}: nothing found, expected <student>/<assignment>.ipynb or .zip")
    isolated.Kernel.kind = sandbox.best()
    print(sandbox.KINDS[isolated.Kernel.kind])
    found = {handin.assignment_of(f, NAMES) for f in files}
    release(api, [name for name in NAMES if name in found])
    table = Path(api.coursedir.release_directory).parent / "grades.csv"
    partial = table.with_suffix(".partial")  # holds every row as soon as it is known
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    for row in (row for folder in folders for row in rows(api, folder)):
        if "points" not in row:
            expect_room(table.parent)  # the lack of it is not the student's fault, and would fail all that follow
        writer.writerow({column: safe(cell) for column, cell in row.items()})
        replace_file(partial, text.getvalue().encode())
        points = f"{row['points']} of {row['of']}" if "points" in row else ""
        said = " · ".join(filter(None, (points, str(row.get("message", "")))))
        print(f"{handin.one_line(str(row['student'])):24} {row.get('assignment', ''):16} {said}", flush=True)
    os.replace(partial, table)
    print(table)


def main(what: str) -> None:
    """Release the assignments or grade a folder; exit code 2 after one line if a file cannot be read or written."""
    try:
        if what == "release":
            pack(release(open_course(), NAMES))
        else:
            os.environ["SUBMISSIONS"] = str(Path(what).resolve())  # no submission sees the others
            grade(open_course(), Path(what))
    except OSError as error:
        print(f"grade.py: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
