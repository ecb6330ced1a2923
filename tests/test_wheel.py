"""What a user gets who has no repository: the package is built, installed in an empty place, and used there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import urllib.request
import venv
from email import message_from_string
from pathlib import Path

import nbformat
import pytest
from browser import served

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The source archive, unpacked: its folder."""
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", out, cwd=ROOT)
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        archive.extractall(out, filter="data")
    return next(path for path in out.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def place(sdist, tmp_path_factory) -> Path:
    """A folder with an environment `venv` in it: the wheel, built from the sdist, beside the packages of this one."""
    folder = tmp_path_factory.mktemp("user")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=sdist)
    venv.create(folder / "venv", symlinks=os.name == "posix")
    python = bin_of(folder) / "python"
    packages = Path(run(python, "-c", "import site; print(site.getsitepackages()[-1])", cwd=folder).strip())
    # as a line of a .pth, the other packages can be imported, but what is installed there in editable form cannot
    (packages / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")) + "\n")
    wheel = next(folder.glob("*.whl"))
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    where = run(python, "-c", "import expr_lib; print(expr_lib.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(folder)
    return folder


def bin_of(place: Path) -> Path:
    return place / "venv" / ("bin" if os.name == "posix" else "Scripts")


@pytest.fixture(scope="module")
def course(place) -> Path:
    printed = run(bin_of(place) / "expr-lib", "course", "course", cwd=place)
    assert "jupyter lab --notebook-dir=course course" in printed
    return place / "course"


def test_the_demo_runs(place):
    printed = run(bin_of(place) / "expr-lib", "demo", "--pairs", "8", cwd=place)
    assert "gain" in printed and (place / "build" / "demo" / "swap.png").is_file()


def test_every_link_of_a_notebook_leads_somewhere(course):
    notebooks = sorted((course / "notebooks").glob("*.ipynb"))
    assert [path.name for path in notebooks] == sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    for path in notebooks:
        text = "\n".join(
            cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"
        )
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)[^)]*\)", text):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


@pytest.mark.parametrize("name", ["00_start_here", "09_your_own_faces"])
def test_a_notebook_runs(course, place, name):
    notebook = f"{name}.ipynb"
    command = [
        bin_of(place) / "python",
        "-m",
        "papermill",
        "--no-progress-bar",
        "-k",
        "python3",
        notebook,
        "done.ipynb",
    ]
    run(*command, cwd=course / "notebooks")
    assert json.loads((course / "build" / "notebooks" / name / "metrics.json").read_text())


def test_the_course_is_never_written_over_a_changed_file(course, place):
    changed, removed = course / "notebooks" / "glossary.md", course / "data" / "labels.csv"
    changed.write_text("my notes")
    removed.unlink()
    printed = run(bin_of(place) / "expr-lib", "course", "course", cwd=place)
    assert f"{Path('course', 'notebooks', 'glossary.md')}: differs from that of the course" in printed
    assert "course: 1 files written" in printed
    assert changed.read_text() == "my notes" and removed.is_file()
    message = run(bin_of(place) / "expr-lib", "course", changed, cwd=place, code=2)
    assert "is a file, expected the name of a folder" in message


def test_the_app_is_served(place, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("JUPYTER_PATH", str(Path(sys.prefix, "share", "jupyter")))  # Voila's templates and the widgets'
    with (
        served(tmp_path, str(bin_of(place) / "expr-lib"), "app") as address,
        urllib.request.urlopen(address, timeout=300) as page,
    ):
        assert page.status == 200 and "widget-view" in page.read().decode()


LACKS = """
import sys
for name in {missing}: sys.modules[name] = None  # an import of it says that there is none
from expr_lib.apps.cli import main
main({arguments})
"""


def test_without_the_extras_faces_are_swapped_and_training_says_what_it_needs(place):
    extras = ("accelerate", "tensorboard", "huggingface_hub", "jupyterlab", "voila", "papermill", "playwright", "mypy")
    pictures = [str(ROOT / "data" / f"subject-{name}.png") for name in ("2-sadness", "5-joy")]

    def lacking(*arguments: str, code: int = 0) -> str:
        code_of = LACKS.format(missing=extras, arguments=list(arguments))
        return run(bin_of(place) / "python", "-c", code_of, cwd=place, code=code)

    lacking("swap", *pictures, "-o", "swap.png")
    lacking("express", pictures[0], "AU12=4", "-o", "smile.png")
    lacking("read", *pictures, "-o", "read.csv")
    assert len((place / "read.csv").read_text().splitlines()) == 3
    for command, extra in (("train", "train"), ("app", "course")):
        message = lacking(command, code=2)
        assert message.count("\n") == 1 and f'pip install "expr-lib[{extra}]"' in message


def test_the_tests_of_the_source_archive_can_be_collected(sdist):
    printed = run(sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", cwd=sdist)
    assert re.search(r"\d{3,} tests collected", printed)


def test_the_metadata_are_complete(place):
    (path,) = (place / "venv").rglob("expr_lib-*.dist-info/METADATA")
    about = message_from_string(path.read_text(encoding="utf-8"))
    classifiers = about.get_all("Classifier")
    assert {f"Programming Language :: Python :: 3.{k}" for k in (10, 11, 12, 13)} <= set(classifiers)
    assert "Typing :: Typed" in classifiers and next((place / "venv").rglob("expr_lib/py.typed")).is_file()
    assert about["License-Expression"] == "Apache-2.0" and about["Author"] and about["Project-URL"]
    assert about["Description-Content-Type"] == "text/markdown" and about.get_payload().startswith("![")
    assert set(about.get_all("Provides-Extra")) >= {"train", "course", "photographs", "dev"}
