"""The README promises only what is there: its links, its commands, and a table that comes from the result file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cards
import pytest

from expr_lib import SHIPPED
from expr_lib.apps import cli
from expr_lib.measure.evaluate import MARKERS, markdown_table

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / x for x in ("README.md", "CONTRIBUTING.md", "expr_lib/README.md", "benchmarks/README.md")]
RESULTS = ROOT / "benchmarks" / "results" / "moved-128.json"
BESIDE = [RESULTS.with_name(f"{name}.json") for name in ("moved-128-at-256", "moved-64", "swap-64")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_local_links_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(document):
    text, makefile = document.read_text(), (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^    |`)make ([a-z]+)", text, re.MULTILINE)):
        assert f"\n{target}:" in makefile, f"make {target}"
    for command in set(re.findall(r"(?:^    |`)expr-lib ([a-z]+)", text, re.MULTILINE)):
        assert command in cli.COMMANDS, f"expr-lib {command}"


def test_the_course_table_is_that_of_the_notebooks():
    rows = re.findall(
        r"^\| (\d\d) \| \[.*?\]\((.*?)\) \|.*\| (.*?) \| (.*?) \|$", (ROOT / "README.md").read_text(), re.M
    )
    files = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert [(number, name) for number, name, _, _ in rows] == [(f.name[:2], f"notebooks/{f.name}") for f in files]
    for _, name, read, run in rows:
        time = next(line for line in (ROOT / name).read_text().splitlines() if "**Time**" in line)
        assert f"{read} to read" in time and f"{run} to run" in time, name


def test_the_results_table_is_that_of_the_result_file():
    text = (ROOT / "README.md").read_text()
    table = text.split(MARKERS[0])[1].split(MARKERS[1])[0].strip()
    results, *beside = (json.loads(path.read_text()) for path in (RESULTS, *BESIDE))
    assert table == markdown_table(results, beside).strip()


def test_the_results_are_those_of_the_shipped_weights_and_the_command_beside_them():
    about = json.loads(RESULTS.read_text())["about"]
    assert about["checkpoint"] == SHIPPED.name and about["command"].startswith("expr-lib evaluate --pairs ")


@pytest.mark.parametrize("name", cards.TABLES)
def test_the_numbers_of_a_model_card_are_those_of_the_result_files(name):
    assert (ROOT / "expr_lib" / "weights" / f"{name}.md").read_text() == cards.written(name)
