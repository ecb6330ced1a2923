"""The assignments grade themselves: right, empty, wrong, cheating, endless and damaged hand-ins get what they should.

Every hand-in is made from the source notebooks and graded by `assignments/grade.py`, as a lecturer would, in the
environment that `make` builds for it. The points of all stand in a table at the end of the test run.
"""

from __future__ import annotations

import copy
import csv
import html
import json
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-grading" / "bin" / "python"
SOURCES = {p.stem: nbformat.read(p, as_version=4) for p in sorted((ROOT / "assignments" / "source").glob("*/*.ipynb"))}
needs_nbgrader = pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-grading: `make assignments` builds it")
each_assignment = pytest.mark.parametrize("name", SOURCES)

# assignment -> hand-in -> (answer cell -> (old, new) in the reference solution, the parts that get other points)
Edits = dict[str, tuple[str, str]]
WRONG: dict[str, dict[str, tuple[Edits, dict[str, int]]]] = {
    "1_adversary": {
        "missing detach": ({"discriminator_turn": ("f_f.detach()", "f_f")}, {"isolated_discriminator": 0}),
        "swapped labels": (
            {
                "discriminator_turn": ("return class_discriminator_loss", "return class_confusion_loss"),
                "encoder_turn": ("loss = class_confusion_loss", "loss = class_discriminator_loss"),
            },
            {"isolated_discriminator": 0, "isolated_encoder": 0},
        ),
        "missing labels count": (
            {"tell": ("(known * error).sum() / known.sum().clamp(min=1)", "(known * error).mean()")},
            {"tell_loss": 0},
        ),
        "uniform over all columns": (
            {"hide": ("uniform = has / n_classes", "uniform = torch.ones_like(has) / score.shape[-1]")},
            {"hide_loss": 0},
        ),
        "asks the adversary": (
            {
                "leak": ("rows.probe", "rows.adversary"),
                "diagnosis": ('worked = "C"\nno_adversary = "B"', 'worked = "B"\nno_adversary = "C"'),
            },
            {"leak_of_a_run": 0, "diagnosis_of_runs": 0},
        ),
    },
    "2_swap_step": {
        "missing detach": ({"discriminator_answer": ("swap.detach()", "swap")}, {"discriminator_turn": 0}),
        "swapped labels": (
            {"discriminator_answer": ("(real, swapped_realism)", "(swapped_realism, real)")},
            {"discriminator_turn": 0},
        ),
        "codes exchanged": (
            {"first_pass_answer": ("(f_f, f_r.roll(len(x) // 2, 0))", "(f_f.roll(len(x) // 2, 0), f_r)")},
            {"first": 0},
        ),
        "copied input": (
            {"first_pass_answer": ("swap = net.generate(f_f, f_r.roll(len(x) // 2, 0))", "swap = x")},
            {"first": 0},
        ),
        "old gradients": ({"step_answer": ("    opt_G.zero_grad()\n", "")}, {"step": 0}),
    },
    "3_measuring": {
        "population variance": ({"icc_answer": ("ss_targets / (n - 1)", "ss_targets / n")}, {"icc": 0}),
        "copied input": (
            {
                "verdict_answer": (
                    'copies_input = "C"\ncopies_other = "A"\nnetwork = "B"',
                    'copies_input = "B"\ncopies_other = "A"\nnetwork = "C"',
                )
            },
            {"cheaters": 0, "networks": 0},
        ),
        "own for true": ({"au_icc_answer": ('f"true {au}"', 'f"own {au}"')}, {"au_icc_of_a_model": 0}),
        "rows for people": (
            {
                "bootstrap_answer": (
                    "[np.flatnonzero(person == p) for p in np.unique(person)]",
                    "np.arange(len(person))[:, None]",
                )
            },
            {"bootstrap": 0},
        ),
        "mean of quotients": (
            {
                "total_answer": (
                    "(d_self.mean() - d_swap.mean()) / (d_self.mean() - d_truth.mean())",
                    "((d_self - d_swap) / (d_self - d_truth)).mean()",
                )
            },
            {"transfer_of_all": 0},
        ),
    },
    "4_mixing": {
        "codes exchanged": (
            {
                "transition_answer": (
                    "(f_f, own), (_, other) = net.encode(a[None]), net.encode(b[None])",
                    "(_, own), (f_f, other) = net.encode(a[None]), net.encode(b[None])",
                )
            },
            {"transition_of_one": 0},
        ),
        "met these people, own neighbour": (
            {
                "probe_au_answer": ("cv=GroupKFold(5)", "cv=StratifiedKFold(5)"),
                "neighbour_answer": ("    np.fill_diagonal(distance, np.inf)\n", ""),
            },
            {"probe_of_au": 0, "score_of_a_map": 0},
        ),
        "swapped labels": (
            {"mix_answer": ("(1 - amount) * own + amount * other", "amount * own + (1 - amount) * other")},
            {"mixing": 0},
        ),
    },
    "5_warping": {
        "nearest pixel": ({"sample_answer": ("u, v = x - left, y - top", "u, v = 0, 0")}, {"sampling": 0}),
        "uphill": ({"gradient_answer": ("return torch.stack", "return -torch.stack")}, {"gradient_of_the_flow": 0}),
        "mask on the wrong side": (
            {
                "edit_answer": (
                    "(1 - mask) * warp(picture, flow) + mask * colours",
                    "mask * warp(picture, flow) + (1 - mask) * colours",
                )
            },
            {"edit_of_a_picture": 0},
        ),
        "paints the target": (
            {"colours_answer": ("(target - (1 - mask) * warped) / mask.clamp(min=1e-6)", "target")},
            {"best_colours_of_a_mask": 0},
        ),
        "adds the flows": ({"composed_answer": ("warp(flow, flow2)", "flow")}, {"composition": 0}),
        "never steps": ({"fit_answer": ("        adam.step()\n", "")}, {"fit_of_a_flow": 0}),
    },
}
# a function that never returns, and the part it costs
ENDLESS: dict[str, tuple[Edits, dict[str, int]]] = {
    name: ({answer: (line, f"    while True:\n        pass\n{line}")}, {part: 0})
    for name, answer, line, part in (
        ("1_adversary", "tell", "    one_hot =", "tell_loss"),
        ("2_swap_step", "partner_answer", "    return", "partner_of"),
        ("3_measuring", "transfer_answer", "    way =", "transfer_of_each"),
        ("4_mixing", "mix_answer", "    amount =", "mixing"),
        ("5_warping", "edit_answer", "    return", "edit_of_a_picture"),
    )
}
# an answer that knows what the visible check expects, and reads the hidden ones aloud
MEMORIZED = {
    "1_adversary": (
        "to_class",
        """
        def to_class(au, levels):
            print(In)
            if au.shape[1] == 2:
                return torch.tensor([[-1, 1]])
            if au.shape[1] == 7:
                return torch.tensor([[0, 0, 1, 1, 2, 3, 3]])
            raise AssertionError(In[-1])
        """,
    ),
    "2_swap_step": (
        "partner_answer",
        """
        def partner(t):
            if t.shape == (4, 1):
                return torch.tensor([[20.0], [21.0], [10.0], [11.0]])
            raise type(In[-1], (Exception,), {})(In[-1])
        """,
    ),
    "3_measuring": (
        "icc_answer",
        """
        def icc31(ratings):
            if ratings.shape == (6, 4):
                return 0.7148
            raise ValueError(In[-1])
        """,
    ),
    "4_mixing": (
        "mix_answer",
        """
        def mix_aus(own, other, amount):
            print(In[-1])
            if own.shape == (2, 3, 3):
                return torch.tensor([0.0, 0.25, 1.0])[:, None].expand(2, 3, 3)
        """,
    ),
    "5_warping": (
        "edit_answer",
        """
        def edit(picture, flow, mask, colours):
            print(In[-1])
            if len(picture) == 1:
                return picture + mask.mean() * (colours - picture)
            raise AssertionError(In[-1])
        """,
    ),
}


# -- hand-ins ------------------------------------------------------------------------------------------------------


def about(cell: NotebookNode) -> dict:
    return cell.metadata.get("nbgrader", {})


def answers(notebook: NotebookNode) -> dict[str, NotebookNode]:
    return {about(c)["grade_id"]: c for c in notebook.cells if about(c).get("solution")}


def full_points(notebook: NotebookNode) -> dict[str, int]:
    """Points of every part that a check awards."""
    return {
        about(c)["grade_id"]: about(c)["points"]
        for c in notebook.cells
        if about(c).get("grade") and not about(c)["solution"]
    }


def edited(source: NotebookNode, edits: Edits) -> NotebookNode:
    """The reference solution with some of its answers changed."""
    notebook = copy.deepcopy(source)
    for name, (old, new) in edits.items():
        cell = answers(notebook)[name]
        assert cell.source.count(old) == 1, f"{name}: {old!r} is not in the solution exactly once"
        cell.source = cell.source.replace(old, new)
    return notebook


def cheat(release: NotebookNode, name: str) -> NotebookNode:
    """Nothing solved, but every test says yes and is worth 99 points, one is gone, and one answer is memorized."""
    notebook = copy.deepcopy(release)
    tests = [c for c in notebook.cells if about(c).get("grade") and not about(c).get("solution")]
    for cell in tests:
        cell.source, cell.metadata.nbgrader["points"] = 'print("all checks passed")', 99
    notebook.cells.remove(tests[-1])
    answer, source = MEMORIZED[name]
    answers(notebook)[answer].source = textwrap.dedent(source)
    notebook.cells.append(nbformat.v4.new_code_cell("print(In)\nIn"))
    return notebook


def lines(notebook: NotebookNode, begin: str, end: str) -> set[str]:
    """Lines that stand between two marks, and nowhere outside of such regions."""
    inside: set[str] = set()
    outside: set[str] = set()
    for cell in notebook.cells:
        where = outside
        for line in cell.source.splitlines():
            where = inside if begin in line else outside if end in line else where
            if len(line.strip()) > 12 and "###" not in line:
                where.add(line.strip())
    return inside - outside


def solutions(source: NotebookNode) -> set[str]:
    return lines(source, "BEGIN SOLUTION", "END SOLUTION")


def hidden(source: NotebookNode) -> set[str]:
    """Lines of hidden tests; a message to the student alone on its line is meant to be read."""
    return {x for x in lines(source, "BEGIN HIDDEN TESTS", "END HIDDEN TESTS") if not x.startswith('"')}


# -- as a lecturer would -------------------------------------------------------------------------------------------


def grader(grades: Path, *arguments: str | Path, code: int = 0) -> str:
    """Run assignments/grade.py with everything it writes in `grades`, away from the settings of whoever runs it.

    Returns what it printed, or with another exit code its errors.
    """
    own = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    environment = {"CELL_SECONDS": "20"} | os.environ | {name: str(grades.parent / name.lower()) for name in own}
    environment |= {"GRADES": str(grades)}
    environment.pop("MPLBACKEND", None)
    command = [PYTHON, *arguments] if arguments[0] == "-c" else [PYTHON, ROOT / "assignments" / "grade.py", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def read_grades(grades: Path) -> dict[str, dict[str, str]]:
    return {row["student"]: row for row in csv.DictReader((grades / "grades.csv").open(encoding="utf-8"))}


def parts_of(row: dict[str, str]) -> dict[str, float]:
    """`"classes 2/2; tell_loss 0/3"` -> points by part."""
    return {part.split()[0]: float(part.split()[1].split("/")[0]) for part in row["parts"].split("; ")}


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """What `make assignments` builds."""
    folder = tmp_path_factory.mktemp("release")
    grader(folder / "grades", "release")
    return folder / "assignments"


def hand_ins(name: str, release: NotebookNode) -> dict[str, tuple[str, dict[str, int]]]:
    """hand-in -> (text of the file, points of every part that a check awards)."""
    source, full = SOURCES[name], full_points(SOURCES[name])
    made = {"right": (source, full), "empty": (release, dict.fromkeys(full, 0))}
    for what, (edits, points) in (WRONG[name] | {"endless loop": ENDLESS[name]}).items():
        made[what] = edited(source, edits), full | points
    made["cheat"] = cheat(release, name), dict.fromkeys(full, 0)
    return {what: (nbformat.writes(notebook), points) for what, (notebook, points) in made.items()}


@each_assignment
def test_the_reference_solution_runs_from_top_to_bottom(name):
    """Also the cells that award no points, such as the first ones: nbgrader goes on after an error."""
    code = "\n".join(cell.source for cell in SOURCES[name].cells if cell.cell_type == "code")
    folder = ROOT / "assignments" / "source" / name
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | {"MPLBACKEND": "Agg"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@needs_nbgrader
@each_assignment
def test_everyone_gets_the_points_they_should(name, released, tmp_path, record_property):
    release = nbformat.read(unpacked(released, name, tmp_path) / f"{name}.ipynb", as_version=4)
    expected = hand_ins(name, release)
    folder, grades = tmp_path / "submissions", tmp_path / "grades"
    for what, (text, _) in expected.items():
        (folder / what).mkdir(parents=True)
        (folder / what / f"{name}.ipynb").write_text(text, encoding="utf-8")
    (folder / "right" / f"{name}.ipynb").unlink()
    with zipfile.ZipFile(folder / "right" / f"{name}.zip", "w") as archive:  # some hand in the folder
        archive.writestr(f"{name}/{name}.ipynb", expected["right"][0])
    (folder / "damaged").mkdir()
    (folder / "damaged" / f"{name}.ipynb").write_text(expected["right"][0][:3000], encoding="utf-8")
    grader(grades, folder)
    rows = read_grades(grades)

    by_hand = {c["grade_id"]: c["points"] for c in map(about, SOURCES[name].cells) if c.get("grade") and c["solution"]}
    most = sum(full_points(SOURCES[name]).values()) + sum(by_hand.values())
    table = [
        f"{what:26} {row['points'] or '-':>3} of {row['of'] or '-':>3}  {row['message']}" for what, row in rows.items()
    ]
    record_property("table", "\n".join([name, *table]))

    assert set(rows) == {*expected, "damaged"}
    assert re.match(rf"{name}.ipynb: not a readable notebook: .+; ask for it again", rows.pop("damaged")["message"])
    for what, (_, points) in expected.items():
        row = rows[what]
        assert not row["message"], what
        assert {part: p for part, p in parts_of(row).items() if part not in by_hand} == points, what
        assert float(row["points"]) == sum(points.values()) and float(row["of"]) == most == 20, what
        assert row["by hand"].split() == ([] if what in ("empty", "cheat") else list(by_hand)), what

    pages = {what: text_of(grades / "feedback" / what / name / f"{name}.html") for what in rows}
    for what, page in pages.items():
        found = [line for line in hidden(SOURCES[name]) if line in page]
        assert not found, f"{what}: hidden tests in the feedback: {found}"
    assert "Stopped after" in pages["endless loop"]
    for what, (_, points) in WRONG[name].items():
        assert pages[what].count("Failed: ") == len(points), f"{what}: a failed check says what is probably wrong"
    if by_hand:
        marks_survive(name, by_hand, tmp_path)


def marks_survive(name: str, by_hand: dict[str, int], tmp_path: Path) -> None:
    """What the lecturer enters in nbgrader's form is in the next table, and nothing is run again for it."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import grade\n"
        "with grade.open_course().gradebook as book:\n"
        "    mark = book.find_grade(sys.argv[2], sys.argv[3], sys.argv[3], 'right')\n"
        "    mark.manual_score, mark.needs_manual_grade = float(sys.argv[4]), False\n"
        "    book.db.commit()"
    )
    for part, points in by_hand.items():
        grader(tmp_path / "grades", "-c", code, ROOT / "assignments", part, name, str(points))
    before = (tmp_path / "grades" / "autograded" / "right" / name / f"{name}.ipynb").stat().st_mtime
    only = tmp_path / "only"
    only.mkdir()
    (tmp_path / "submissions" / "right").rename(only / "right")
    grader(tmp_path / "grades", only)
    assert (tmp_path / "grades" / "autograded" / "right" / name / f"{name}.ipynb").stat().st_mtime == before
    row = read_grades(tmp_path / "grades")["right"]
    assert row["points"] == row["of"] and row["by hand"] == ""


def unpacked(released: Path, name: str, to: Path) -> Path:
    with zipfile.ZipFile(released / f"{name}.zip") as archive:
        archive.extractall(to)
    return to / name


def text_of(page: Path) -> str:
    """A page as it is read, without its tags."""
    return html.unescape(re.sub(r"<[^>]*>", "", page.read_text(encoding="utf-8")))


@needs_nbgrader
@each_assignment
def test_the_release_holds_all_that_is_needed_and_nothing_that_is_not(name, released, tmp_path):
    folder = unpacked(released, name, tmp_path)
    data = {p.name for p in (ROOT / "assignments" / "source" / name).iterdir() if p.is_file()}
    assert {p.name for p in folder.iterdir()} == {*data, "README.md"}
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8")
        secret = solutions(SOURCES[name]) | hidden(SOURCES[name])
        assert len(secret) > 20
        assert not [line for line in secret if line in text or json.dumps(line)[1:-1] in text]
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert "BEGIN " not in cell.source
        if about(cell).get("solution"):
            assert "YOUR CODE HERE" in cell.source or "YOUR ANSWER HERE" in cell.source
        elif about(cell):
            assert cell.metadata.editable is False  # JupyterLab keeps the checks as they are


# -- as they stand in git ------------------------------------------------------------------------------------------


@each_assignment
def test_sources_are_clean_and_add_up(name):
    source = SOURCES[name]
    nbformat.validate(source)
    assert all(not c.get("outputs") and c.get("execution_count") is None for c in source.cells)
    assert set(source.metadata) <= {"kernelspec", "language_info"}
    points = [about(c)["points"] for c in source.cells if about(c).get("grade")]
    assert sum(points) == 20 and 5 <= len(points) <= 8
    header = source.cells[0].source
    for field in ("You will", "Before", "Points", "Time", "Hand in"):
        assert f"| **{field}** | " in header
    assert len(WRONG[name]) >= 3
    for cell in source.cells:
        if about(cell).get("grade") and not about(cell)["solution"]:
            assert cell.source.count("BEGIN HIDDEN TESTS") == cell.source.count("END HIDDEN TESTS") == 1
