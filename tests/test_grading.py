"""Hand-ins that attack whoever grades them, and hand-ins as students really make them.

Every attack is tried, and is harmless where it succeeds. What happened to each stands in a table at the end of the run.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_raw_cell
from test_assignments import ROOT, SOURCES, about, answers, grader, needs_nbgrader

sys.path.insert(0, str(ROOT / "assignments"))
import handin
import sandbox

NAME = "3_measuring"
linux = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")


def release_of(source: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Like what students get: without solutions and hidden tests."""
    release = copy.deepcopy(source)
    for cell in release.cells:
        stub = "# YOUR CODE HERE\n\\1raise NotImplementedError()" if cell.cell_type == "code" else "YOUR ANSWER HERE"
        cell.source = re.sub(r"(?s)([ ]*)### BEGIN SOLUTION.*?### END SOLUTION", r"\1" + stub, cell.source)
        cell.source = re.sub(r"(?s)\n### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS", "", cell.source)
    return release


def solved(release: nbformat.NotebookNode, source: nbformat.NotebookNode) -> nbformat.NotebookNode:
    notebook = copy.deepcopy(release)
    for name, cell in answers(source).items():
        answers(notebook)[name].source = cell.source
    return notebook


RELEASES = {name: release_of(source) for name, source in SOURCES.items()}
each_assignment = pytest.mark.parametrize("name", SOURCES)


# -- the sandbox alone ---------------------------------------------------------------------------------------------

PROBE = """
import ctypes, json, os, resource, socket, subprocess, sys
said = {}

def attempt(name, what):
    try:
        said[name] = repr(what())
    except (OSError, subprocess.SubprocessError) as error:
        said[name] = type(error).__name__

port, outside, secret = int(sys.argv[1]), sys.argv[2], sys.argv[3]
attempt("network", lambda: socket.create_connection(("127.0.0.1", port), 3))
attempt("other files", lambda: open(secret).read())
attempt("write outside", lambda: open(outside, "w").write("was here"))
attempt("write to the library", lambda: open(sys.argv[4], "a"))
attempt("write to its own folder", lambda: open("own", "w").write("x"))
attempt("data", lambda: open("table.csv").read())
attempt("notebook beside the data", lambda: open("hidden.ipynb").read())
attempt("large file", lambda: open("large", "wb").truncate(1 << 31))
attempt("settings of the kernel", lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))  # nothing is written
pid = os.fork()
if not pid:
    os._exit(ctypes.CDLL(None).unshare(0x10000000) == 0)
said["user namespace"] = ["refused", "made"][os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
said["processes"] = len([p for p in os.listdir("/proc") if p.isdigit()])
said["environment"] = os.environ.get("LECTURERS_TOKEN")
said["memory"] = resource.getrlimit(resource.RLIMIT_AS)[0]
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", sys.argv[5]], start_new_session=True)
print(json.dumps(said))
"""


def running(mark: str) -> bool:
    found = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
    return any(mark.encode() in line for line in found)


def ends(mark: str) -> bool:
    """Whether such a process ends within five seconds."""
    for _ in range(50):
        if not running(mark):
            return True
        time.sleep(0.1)
    return False


def usable(kind: str, tmp_path: Path) -> None:
    shared, data = tmp_path / "try", tmp_path / "nothing"
    shared.mkdir()
    data.mkdir()
    command = [sys.executable, sandbox.__file__, kind, shared, data, "--", sys.executable, "-c", ""]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{kind} does not work here: {done.stderr.strip()[-100:]}")


@linux
@pytest.mark.parametrize("kind", sandbox.KINDS)
def test_what_a_program_in_the_sandbox_can_reach(kind, tmp_path, monkeypatch, record_property):
    usable(kind, tmp_path)
    shared, data, secret = tmp_path / "shared", tmp_path / "data", tmp_path / "gradebook"
    shared.mkdir()
    data.mkdir()
    (data / "table.csv").write_text("1,2")
    (data / "hidden.ipynb").write_text("hidden")
    secret.write_text("secret")
    monkeypatch.setenv("LECTURERS_TOKEN", "abc")
    mark = f"left-behind-{os.getpid()}-{kind}"
    with socket.create_server(("127.0.0.1", 0)) as server:
        library = ROOT / "expr_lib" / "files.py"  # opened to add to it, and nothing added
        arguments = [str(server.getsockname()[1]), str(tmp_path / "outside"), str(secret), str(library), mark]
        command = [sys.executable, sandbox.__file__, kind, shared, data, "--", sys.executable, "-c", PROBE, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    said["daemon"] = "ended" if ends(mark) else "lives on"
    record_property("table", "\n".join([kind, *(f"{what:26} {found}" for what, found in said.items())]))

    assert said["data"] == repr("1,2") and said["environment"] is None and said["large file"] == "OSError"
    assert said["notebook beside the data"] == "FileNotFoundError" and said["daemon"] == "ended"
    assert said["memory"] == sandbox.MEMORY_GB << 30
    if kind != "limits":
        assert said["network"] in ("OSError", "ConnectionRefusedError")
        assert said["other files"] == "FileNotFoundError" and said["write to the library"] == "OSError"
        assert not (tmp_path / "outside").exists() and said["processes"] < 6
        assert said["user namespace"] == "refused" and said["settings of the kernel"] in ("OSError", "PermissionError")


def test_an_unknown_sandbox_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="found the sandbox 'chroot', expected one of bubblewrap, namespaces, limits"):
        sandbox.run("chroot", str(tmp_path), str(tmp_path), [], ["true"])


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("3_measuring.ipynb", NAME), ("3_measuring (1).ipynb", NAME), ("3_measuring(2).zip", NAME),
        ("3_measuring - Copy.ipynb", NAME), ("3_Measuring_final.ipynb", NAME), ("3_measuring copy 2.ipynb", NAME),
        ("3_measuring-v2.ipynb", NAME), ("3_measuring-checkpoint.ipynb", None), ("3_measuring.txt", None),
        ("33_measuring.ipynb", None), ("report.ipynb", None),
    ],
)  # fmt: skip
def test_names_as_browsers_and_people_make_them(file, expected):
    assert handin.assignment_of(Path(file), SOURCES) == expected


def test_of_several_copies_the_very_name_comes_first():
    files = [Path(f"3_measuring{more}") for more in (" (1).ipynb", ".zip", ".ipynb", " (10).ipynb")]
    assert [f.name[11:] for f in handin.best_first(files, NAME)] == [".ipynb", ".zip", " (10).ipynb", " (1).ipynb"]


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(f"{NAME}.ipynb", "w", force_zip64=True) as member:
            for _ in range(100):
                member.write(bytes(1 << 20))
    return buffer.getvalue()


def zipped(*names: str, content: bytes = b"{}", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in names:
            archive.writestr(name, content)
    return buffer.getvalue()


NOT_READ = {
    "a bomb.zip": (bomb(), "more than 20 MB when unpacked"),
    "many files.zip": (zipped(*(f"{i}.txt" for i in range(2001))), "2001 files inside, expected at most 2000"),
    "two of them.zip": (zipped("a/3_measuring.ipynb", "b/3_measuring.ipynb"), "2 files 3_measuring.ipynb inside"),
    "unusual.zip": (zipped("3_measuring.ipynb", method=zipfile.ZIP_BZIP2), "packed in an unusual way"),
    "no zip.zip": (b"PK\3\4 and nothing else", "damaged (BadZipFile)"),
    "large.ipynb": (b" " * 20_000_001, "more than 20 MB"),
    "empty.ipynb": (b"", "the file is empty"),
    "text.ipynb": (b"root:x:0:0:root", "line 1 column 1: Expecting value"),
    "bytes.ipynb": (b"\xff\xfe\x00", "no text in UTF-8"),
    "nested.ipynb": (b"[" * 200_000, "nested too deeply"),
    "a list.ipynb": (b"[1]", "no notebook"),
    "many cells.ipynb": (b'{"nbformat": 4, "cells": [' + b"{}," * 1000 + b"{}]}", "1001 cells, expected at most 1000"),
    "no cells.ipynb": (b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{}]}', "not as in a notebook"),
}


@pytest.mark.parametrize("what", NOT_READ)
def test_files_that_are_no_notebook_are_one_line_without_their_content(tmp_path, what):
    content, expected = NOT_READ[what]
    file = tmp_path / what
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        handin.read(file, NAME)
    message = str(caught.value)
    assert expected in message and message.endswith("; ask for it again") and "\n" not in message
    assert "root:" not in message and len(message) < 300


def test_no_link_is_followed_and_no_pipe_waited_for(tmp_path):
    (tmp_path / f"{NAME}.ipynb").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / f"{NAME}.zip")
    (tmp_path / f"{NAME} (1).ipynb").mkdir()
    for name, expected in ((".ipynb", "a link, not followed"), (".zip", "no regular file"), (" (1).ipynb", "a folder")):
        with pytest.raises(ValueError, match=expected):
            handin.read(tmp_path / f"{NAME}{name}", NAME)


def test_a_zip_of_a_folder_from_a_mac_is_read(tmp_path):
    notebook = nbformat.writes(SOURCES[NAME]).encode()
    names = (
        f"{NAME}/{NAME} (1).ipynb",
        f"__MACOSX/{NAME}/._{NAME}.ipynb",
        f"{NAME}/.ipynb_checkpoints/{NAME}-checkpoint.ipynb",
    )
    (tmp_path / f"{NAME}.zip").write_bytes(zipped(*names, content=notebook))
    assert len(handin.read(tmp_path / f"{NAME}.zip", NAME).cells) == len(SOURCES[NAME].cells)


# -- cells ---------------------------------------------------------------------------------------------------------


def mended(notebook: nbformat.NotebookNode, name: str = NAME) -> tuple[nbformat.NotebookNode, str]:
    result, remarks = handin.mend(notebook, RELEASES[name])
    nbformat.validate(result)
    assert [about(c)["grade_id"] for c in result.cells if about(c)] == [
        about(c)["grade_id"] for c in RELEASES[name].cells if about(c)
    ]
    for mine, theirs in zip(filter(about, result.cells), filter(about, RELEASES[name].cells), strict=True):
        assert mine.metadata == theirs.metadata
    assert all(not c.metadata for c in result.cells if not about(c)) and result.metadata == RELEASES[name].metadata
    return result, "; ".join(remarks)


@each_assignment
def test_a_sound_hand_in_stays_as_it_is(name):
    result, remarks = mended(solved(RELEASES[name], SOURCES[name]), name)
    assert [c.source for c in result.cells] == [c.source for c in solved(RELEASES[name], SOURCES[name]).cells]
    assert not remarks


@each_assignment
def test_every_answer_is_found_without_any_mark(name):
    notebook = solved(RELEASES[name], SOURCES[name])
    for cell in notebook.cells:
        cell.metadata.clear()
    result, remarks = mended(notebook, name)
    assert {n: c.source for n, c in answers(result).items()} == {n: c.source for n, c in answers(SOURCES[name]).items()}
    assert len(result.cells) == len(notebook.cells)
    assert remarks.startswith("had lost their marks and were found again: ") and "not found" not in remarks


@each_assignment
def test_any_answer_or_check_can_be_copied_or_deleted_or_lose_its_id(name):
    whole = solved(RELEASES[name], SOURCES[name])
    for at, cell in enumerate(whole.cells):
        if not about(cell):
            continue
        doubled, changed, gone, unnamed = (copy.deepcopy(whole) for _ in range(4))
        doubled.cells.insert(at + 1, copy.deepcopy(cell))
        changed.cells.insert(at + 1, copy.deepcopy(cell))
        changed.cells[at + 1].source += "\n# again"
        del gone.cells[at]
        del unnamed.cells[at].metadata.nbgrader["grade_id"]
        one = about(cell)["grade_id"]
        for notebook in (doubled, changed):
            result, remarks = mended(notebook, name)
            assert remarks == f"there more than once, the last answer counts: {one}"
        kept = next(c for c in result.cells if about(c).get("grade_id") == one)
        assert about(cell)["locked"] or kept.source.endswith("# again")
        result, remarks = mended(gone, name)
        assert not remarks and len(result.cells) == len(whole.cells)
        result, _ = mended(unnamed, name)
        assert [c.source for c in result.cells] == [c.source for c in whole.cells]


def test_an_unanswered_copy_below_the_answer_does_not_undo_it():
    notebook = solved(RELEASES[NAME], SOURCES[NAME])
    at = next(i for i, c in enumerate(notebook.cells) if about(c).get("grade_id") == "icc_answer")
    notebook.cells.insert(at + 1, copy.deepcopy(answers(RELEASES[NAME])["icc_answer"]))
    result, _ = mended(notebook)
    assert [c.source for c in result.cells] == [c.source for c in solved(RELEASES[NAME], SOURCES[NAME]).cells]


def test_marks_points_and_tags_of_the_hand_in_count_for_nothing():
    notebook = copy.deepcopy(RELEASES[NAME])
    for cell in notebook.cells:
        cell.metadata["tags"] = ["skip-execution", "raises-exception"]
        if about(cell):
            cell.metadata.nbgrader |= {"points": 99, "locked": False, "solution": True}
    own = new_code_cell("1", metadata={"nbgrader": {"grade_id": "mine", "grade": True, "points": 50, "locked": True}})
    odd = [new_code_cell("2", metadata={"nbgrader": mark}) for mark in ({}, {"grade_id": []}, {"grade": True})]
    notebook.cells += [own, *odd]
    mended(notebook)


# -- a whole run ---------------------------------------------------------------------------------------------------

SCRIPT = "<script>document.title = 'gone'</script>"
ATTACK = """
import json, os, socket, subprocess, sys
said = {}
for name, what in {
    "hidden tests and solutions": lambda: open(%(source)r).read(),
    "gradebook": lambda: open(%(gradebook)r, "rb").read(9),
    "another hand-in": lambda: open(%(other)r).read(),
    "its own notebook": lambda: [f for f in os.listdir() if f.endswith(".ipynb")][0],
    "network": lambda: socket.create_connection(("127.0.0.1", %(port)d), 3),
    "writing outside": lambda: open(%(outside)r, "w").write("was here"),
    "the environment": lambda: os.environ["LECTURERS_TOKEN"],
    "the checks above, in In": lambda: [x for x in In if "BEGIN " + "HIDDEN" in x][0],
}.items():
    try:
        said[name] = "REACHED " + repr(what())[:40]
    except Exception as error:
        said[name] = type(error).__name__
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", %(mark)r], start_new_session=True)
print(json.dumps(said))
"""


@needs_nbgrader
@linux
def test_a_run_of_attacks_and_of_mistakes(tmp_path, monkeypatch, record_property):
    folder, grades = tmp_path / "submissions", tmp_path / "grades"
    whole = solved(RELEASES[NAME], SOURCES[NAME])
    monkeypatch.setenv("LECTURERS_TOKEN", "abc")
    mark = f"left-behind-{os.getpid()}-run"

    def hand_in(student: str, content: bytes | nbformat.NotebookNode, name: str = f"{NAME}.ipynb") -> Path:
        (folder / student).mkdir(parents=True, exist_ok=True)
        content = content if isinstance(content, bytes) else nbformat.writes(content).encode()
        (folder / student / name).write_bytes(content)
        return folder / student / name

    messy = copy.deepcopy(whole)  # one cell twice, no cell with a mark
    at = next(i for i, c in enumerate(messy.cells) if about(c).get("grade_id") == "icc_answer")
    messy.cells.insert(at + 1, copy.deepcopy(messy.cells[at]))
    for cell in messy.cells[8:]:
        cell.metadata.clear()
    other = hand_in("messy", messy, f"{NAME} (1).ipynb")
    hand_in("messy", b"{}", f"{NAME} (0).ipynb")
    hand_in("messy", b"me", "notes.txt")
    hand_in("bomb", NOT_READ["a bomb.zip"][0], f"{NAME}.zip")
    hand_in("=cmd()", b"root:x:0:0")
    hand_in("one[1]", whole)
    (folder / "link").mkdir()
    (folder / "link" / f"{NAME}.ipynb").symlink_to("/etc/passwd")
    (folder / "linked").symlink_to(folder / "messy")
    dead = copy.deepcopy(RELEASES[NAME])
    answers(dead)["icc_answer"].source = "import os\nos._exit(3)"
    hand_in("dead", dead)

    with socket.create_server(("127.0.0.1", 0)) as server:
        reach = {
            "source": str(ROOT / "assignments" / "source" / NAME / f"{NAME}.ipynb"), "other": str(other),
            "gradebook": str(grades / "gradebook.db"), "outside": str(tmp_path / "outside"), "mark": mark,
            "port": server.getsockname()[1],
        }  # fmt: skip
        attack = copy.deepcopy(whole)
        attack.cells += [
            new_code_cell(textwrap.dedent(ATTACK % reach)),
            new_markdown_cell(f"{SCRIPT}\n\n<img src=x onerror=alert(1)>\n\n[a](javascript:alert(2)) `{SCRIPT}` $x$"),
            new_markdown_cell(f"</pre>{SCRIPT}\n\n```\n{SCRIPT}", metadata={"nbgrader": {"locked": True}}),
            new_raw_cell(SCRIPT, metadata={"raw_mimetype": "text/html", "tags": [f'">{SCRIPT}']}),
        ]
        attack.metadata["kernelspec"] = {"name": "touch-pwned", "display_name": SCRIPT, "language": SCRIPT}
        attack.metadata["title"] = f"</title>{SCRIPT}"
        hand_in("attack", attack)
        output = grader(grades, folder)

    rows = {(r["student"], r["assignment"]): r for r in csv.DictReader((grades / "grades.csv").open(encoding="utf-8"))}
    text = (grades / "grades.csv").read_text(encoding="utf-8")
    one = {student: row for (student, _), row in rows.items() if student != "messy"}
    table = [f"{s:10} {r['points'] or '-':>3}  {r['message']}" for (s, _), r in rows.items()]

    assert "root:" not in text and "not readable" not in text
    assert one["link"]["message"].startswith(f"{NAME}.ipynb: a link, not followed")
    assert one["linked"]["message"].startswith("a link, not followed")
    assert "more than 20 MB when unpacked" in one["bomb"]["message"]
    assert "line 1 column 1" in one["'=cmd()"]["message"] and "rename it" in one["one[1]"]["message"]
    assert "its program ended" in one["dead"]["message"] and one["attack"]["points"] == "20"
    messages = text.splitlines()
    assert any("(1).ipynb: taken for 3_measuring; there more than once" in m and ",20,20," in m for m in messages)
    assert any("(0).ipynb: not graded, because 3_measuring (1).ipynb was" in m for m in messages)
    assert any("notes.txt: not an assignment" in m for m in messages)

    done = nbformat.read(grades / "autograded" / "attack" / NAME / f"{NAME}.ipynb", as_version=4)
    printed = next(c for c in done.cells if "LECTURERS_TOKEN" in c.source).outputs[0].text
    said = json.loads(printed)
    table += [f"{what:28} {found}" for what, found in said.items()]
    assert len(said) == 8
    assert ends(mark)
    assert "REACHED" not in said["the environment"] and "REACHED" not in said["its own notebook"]
    if "NOT ISOLATED" not in output:
        assert not [what for what, found in said.items() if "REACHED" in found]
        assert not (tmp_path / "outside").exists()

    page = (grades / "feedback" / "attack" / NAME / f"{NAME}.html").read_text(encoding="utf-8")
    assert SCRIPT not in page and "onerror=alert" not in re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)
    assert 'href="javascript' not in page and "<img src=x" not in page
    assert page.count("&lt;script&gt;document.title") >= 4  # shown as text
    record_property("table", "\n".join(["attacks", *table]))


FULL = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import grade
whole, (room, student) = grade.grade_one, (int(sys.argv[3]), sys.argv[4])

def full() -> None:  # no file gets more than `room` bytes, as on a disk that is full
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

def grade_one(api, who, *more):
    if who == student:
        full()
    return whole(api, who, *more)

grade.grade_one = grade_one
if not student:
    full()
grade.main(sys.argv[2])
"""


@needs_nbgrader
@linux
def test_a_full_disk_is_one_line_and_keeps_the_grades_that_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("SANDBOX", "limits")  # it starts fastest, and these submissions are ours
    folder, grades = tmp_path / "submissions", tmp_path / "grades"
    for student in ("ada", "ben"):
        (folder / student).mkdir(parents=True)
        (folder / student / f"{NAME}.ipynb").write_text(nbformat.writes(solved(RELEASES[NAME], SOURCES[NAME])))
    (folder / "ada" / "notes.txt").write_text("x")

    def on_a_full_disk(room: int, student: str) -> None:
        said = grader(grades, "-c", FULL, ROOT / "assignments", folder, str(room), student, code=2)
        assert re.fullmatch(r"grade\.py: error: .+: cannot be read or written: file too large; make room.+\n", said)

    for room in (10_000, 60_000):  # too little for the hand-in; for the gradebook
        on_a_full_disk(room, "ben")
        rows = list(csv.DictReader((grades / "grades.partial").open(encoding="utf-8")))
        assert [(row["student"], row["points"]) for row in rows] == [("ada", "20"), ("ada", "")]
        assert not [*grades.rglob(".*.partial")] and not (grades / "grades.csv").exists()
        for notebook in grades.rglob("*.ipynb"):
            nbformat.read(notebook, as_version=4)
        assert "</html>" in (grades / "feedback" / "ada" / NAME / f"{NAME}.html").read_text()
    partial, adas = grades / "grades.partial", grades / "autograded" / "ada" / NAME / f"{NAME}.ipynb"
    before = partial.stat(), adas.stat()
    on_a_full_disk(10_000, "")  # still full: nothing is touched
    assert partial.stat() == before[0]
    grader(grades, folder)
    rows = list(csv.DictReader((grades / "grades.csv").open(encoding="utf-8")))
    assert [row["points"] for row in rows] == ["20", "", "20"]
    assert adas.stat() == before[1]  # not run again


def test_the_container_recipe_copies_what_there_is_and_installs_what_is_declared():
    """Its form alone: nothing here builds containers."""
    recipe = (ROOT / "assignments" / "Containerfile").read_text().replace("\\\n", " ")
    copied = [word for line in re.findall("^COPY (.*)", recipe, re.MULTILINE) for word in line.split()[:-1]]
    assert {"expr_lib", "assignments", "constraints.txt"} <= {*copied} and all(
        (ROOT / word).exists() for word in copied
    )
    extras = re.search(r"\.\[([\w,]+)\]", recipe)[1].split(",")
    assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras)
    assert 'CMD ["/opt/grading/bin/python", "assignments/grade.py", "/submissions"]' in recipe


@needs_nbgrader
@linux
def test_memory_counts_over_all_processes_of_a_submission(tmp_path):
    hold = "import os, time; os.fork(); os.fork(); x = bytearray(300 << 20); time.sleep(600)"  # four, each below 1 GB
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import isolated, subprocess, tempfile, threading, time\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[2]], start_new_session=True)\n"
        "kernel = isolated.Kernel.__new__(isolated.Kernel)\n"
        "kernel.shared, kernel.over, isolated.sandbox.MEMORY_GB = tempfile.mkdtemp(), threading.Event(), 1\n"
        "start = time.monotonic(); kernel.watch(child.pid); print(child.wait(), time.monotonic() - start < 300)"
    )
    assert grader(tmp_path / "grades", "-c", code, ROOT / "assignments", hold) == "-9 True\n"


@needs_nbgrader
def test_a_log_that_is_missing_is_said_and_costs_nobody_the_grades(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import grade\n"
        "print([grade.why(d) for d in ({}, {'log': None}, {'log': '', 'error': None})])\n"
        "print(grade.why({'log': 'a\\nValueError: no'}))\n"
        "print([grade.safe(c) for c in ('=1+1', '+1', '-1', '@a', '\\t=1', 'a=1', 20)])"
    )
    said = grader(tmp_path / "grades", "-c", code, ROOT / "assignments")
    assert said.count("does not say why") == 3 and "ValueError: no" in said
    assert '["\'=1+1", "\'+1", "\'-1", "\'@a", "\'=1", \'a=1\', \'20\']' in said
