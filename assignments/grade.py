"""The assignments for students, and points for what comes back: as little as possible around nbgrader.

python assignments/grade.py release             build/assignments/*.zip: what a student gets
python assignments/grade.py SUBMISSIONS         build/grades/grades.csv and build/grades/feedback/, where SUBMISSIONS
                                                holds <student>/<assignment>.ipynb or <student>/<assignment>.zip
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbgrader.apps import NbGraderAPI
from nbgrader.coursedir import CourseDirectory
from traitlets.config.loader import PyFileConfigLoader

HERE = Path(__file__).resolve().parent
NAMES = sorted(folder.name for folder in (HERE / "source").iterdir() if folder.is_dir())
COLUMNS = ["student", "assignment", "points", "of", "by hand", "parts", "message"]


def open_course() -> NbGraderAPI:
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # nbgrader calls alembic
    config = PyFileConfigLoader("nbgrader_config.py", path=str(HERE)).load_config()
    Path(config.CourseDirectory.release_directory).mkdir(parents=True, exist_ok=True)
    Path(config.Exchange.root).mkdir(exist_ok=True)
    return NbGraderAPI(CourseDirectory(config=config), config=config)


def release(api: NbGraderAPI, names: Iterable[str]) -> Path:
    """Write the students' notebooks and enter the checks in the gradebook -> the folder of the release."""
    for name in names:
        done = api.generate_assignment(name)
        if not done["success"]:
            raise SystemExit(f"{name}: {why(done)}")
    return Path(api.coursedir.release_directory)


def pack(folder: Path) -> None:
    """One zip for each assignment of a release: the notebook, its data, and how to go about it."""
    to = folder.parents[1] / "assignments"
    to.mkdir(exist_ok=True)
    for name in NAMES:
        shutil.copy(HERE / "STUDENTS.md", folder / name / "README.md")
        print(shutil.make_archive(str(to / name), "zip", folder, name))


def why(done: dict[str, str]) -> str:
    """The line of nbgrader's log that names the error."""
    lines = [line.strip() for line in (done["log"] + done.get("error", "")).splitlines() if line.strip()]
    return next((line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)), lines[-1])


def read(file: Path) -> str:
    """The notebook that a student handed in; ValueError says what is wrong with the file."""
    if file.stem not in NAMES or file.suffix not in (".ipynb", ".zip"):
        raise ValueError(f"{file.name}: not an assignment; expected {', '.join(NAMES)} as .ipynb or .zip")
    try:
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                inside = [n for n in archive.namelist() if Path(n).name == f"{file.stem}.ipynb"]
                if len(inside) != 1:
                    raise ValueError(f"{len(inside)} files {file.stem}.ipynb inside, expected one")
                text = archive.read(inside[0]).decode()
        else:
            text = file.read_text(encoding="utf-8")
        nbformat.validate(nbformat.reads(text, as_version=4))
    except Exception as error:  # whatever a damaged file makes nbformat say
        found = " ".join(str(error).split())[:120]
        raise ValueError(f"{file.name}: not a readable notebook: {found}; ask for it again") from None
    return text


def grade_one(api: NbGraderAPI, student: str, file: Path) -> dict[str, object]:
    """Grade one file -> a row of grades.csv. What goes wrong stands in its message and stops nobody else."""
    row: dict[str, object] = {"student": student, "assignment": file.stem}
    try:
        text = read(file)
    except ValueError as error:
        return row | {"message": str(error)}
    place = Path(student, file.stem, f"{file.stem}.ipynb")
    target, graded = api.coursedir.submitted_directory / place, api.coursedir.autograded_directory / place
    source = HERE / "source" / file.stem / f"{file.stem}.ipynb"
    old = graded.exists() and graded.stat().st_mtime > source.stat().st_mtime and target.read_text("utf-8") == text
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    for step in (api.generate_feedback,) if old else (api.autograde, api.generate_feedback):
        done = step(file.stem, student)
        if not done["success"]:
            return row | {"message": f"{file.name}: could not be graded: {why(done)}"}
    with api.gradebook as book:
        handed_in = book.find_submission(file.stem, student)
        grades = {g.cell.name: g for g in handed_in.notebooks[0].grades}
        waiting = [name for name, g in grades.items() if g.needs_manual_grade]
        parts = [f"{name} {g.score:g}/{g.max_score:g}" for name, g in sorted(grades.items())]
        return row | {
            "points": f"{handed_in.score:g}", "of": f"{handed_in.max_score:g}",
            "by hand": " ".join(waiting), "parts": "; ".join(parts),
        }  # fmt: skip


def grade(api: NbGraderAPI, submissions: Path) -> None:
    files = sorted(f for f in submissions.glob("*/*") if f.is_file() and not f.name.startswith("."))
    if not files:
        raise SystemExit(f"{submissions}: nothing found, expected <student>/<assignment>.ipynb or .zip")
    release(api, [name for name in NAMES if any(f.stem == name for f in files)])
    table = Path(api.coursedir.release_directory).parent / "grades.csv"
    partial = table.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        for file in files:
            row = grade_one(api, file.parent.name, file)
            writer.writerow(row)
            said = row.get("message") or f"{row['points']} of {row['of']}"
            print(f"{row['student']:24} {row['assignment']:16} {said}", flush=True)
    os.replace(partial, table)
    print(table)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    if sys.argv[1] == "release":
        pack(release(open_course(), NAMES))
    else:
        grade(open_course(), Path(sys.argv[1]))
