"""The README promises only what is there: its links, its commands, and a table that comes from the result file."""

from __future__ import annotations

import json
import pkgutil
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from huggingface_hub import ModelCard

from expr_lib import SHIPPED, losses, model
from expr_lib.apps import cli
from expr_lib.measure import metrics
from expr_lib.measure.cards import MARKERS, folded_table, head
from expr_lib.model import ModelConfig
from expr_lib.step import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "expr_lib/README.md")
DOCUMENTS = [*(ROOT / x for x in PAGES), *sorted((ROOT / "benchmarks").glob("*.md"))]
FOLDER = ROOT / "benchmarks" / "results"
TABLE = ("moved-128", "moved-128-at-256", "moved-64", "swap-64")  # of the README: first what is shipped
CARDS = {
    "moved-128": ("moved-128-at-256", "moved-64", "scratch-64", "swap-64"), "moved-64": ("swap-64",), "swap-64": (),
}  # fmt: skip


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


def test_the_table_of_what_f_f_tells_is_that_of_the_result_file():
    table = [line for line in (FOLDER / "claims.md").read_text().splitlines() if line.startswith("|")]
    assert "\n".join(table) in (ROOT / "README.md").read_text()
    leak = json.loads((FOLDER / "claims.json").read_text())["leak_au"]
    for generation in ("first", "second"):
        trained, untrained = (leak[f"f_f of {x}{generation} generation"] for x in ("the ", "an untrained network, "))
        assert min(trained) > max(untrained) and min(trained) > max(leak["the pixels"])
    assert max(leak["... its face at rest alone"]) < 0.51


def test_the_results_table_is_that_of_the_result_file():
    text = (ROOT / "README.md").read_text()
    table = text.split(MARKERS[0])[1].split(MARKERS[1])[0].strip()
    results, *beside = (json.loads((FOLDER / f"{name}.json").read_text()) for name in TABLE)
    assert table == folded_table(results, beside).strip()
    assert {line.count("|") for line in table.partition("<details>")[0].split("\n") if line} == {5}  # four columns


def test_what_the_readme_says_about_f_f_is_in_the_result_files():
    text = (ROOT / "README.md").read_text()
    for generation, name in (("first", "swap-64"), ("second", "moved-128")):
        leak = json.loads((FOLDER / f"{name}.json").read_text())["leaks"]["leak_au"]["value"]
        assert f"| `f_f` of the {generation} generation | {leak:.2f} |" in text


@pytest.mark.parametrize("name", CARDS)
def test_a_model_card_has_the_numbers_of_its_result_file(name):
    """`expr-lib card` writes the head, which a hub reads, and the tables."""
    text = (ROOT / "expr_lib" / "weights" / f"{name}.md").read_text()
    results, *beside = (json.loads((FOLDER / f"{one}.json").read_text()) for one in (name, *CARDS[name]))
    assert text.startswith(head(name, results)) and "<details><summary>How it was made" in text
    about = ModelCard(text).data
    assert about.license == "apache-2.0" and about.pipeline_tag == "image-to-image"
    reached = {one.metric_type: one.metric_value for one in about.eval_results}
    assert reached["gain"] == pytest.approx(results["rows"]["ours"]["gain"]["value"], abs=1e-4)
    table = folded_table(results, beside)
    assert text.split(MARKERS[0])[1].split(MARKERS[1])[0].strip() == table.strip()


METHOD = (ROOT / "expr_lib" / "README.md").read_text()


def test_the_index_of_equations_names_what_the_code_has():
    """Every `module.name` of the method page exists, and every loss and every network is in its index."""
    for name in set(re.findall(r"`((?!torch)[a-z_]+(?:\.\w+)+)`", METHOD)):
        assert name.endswith(".py") or pkgutil.resolve_name(f"expr_lib.{name}"), name
    index = METHOD.split("## Where each equation is")[1].split("\n## ")[0]
    defined = {f"losses.{name}" for name in vars(losses) if name.endswith("_loss")}
    defined |= {
        f"model.{net.__name__}" for net in (model.E, model.G, model.DG, model.MovingDG, model.D_f, model.D_r, model.D)
    }
    assert not {name for name in defined if f"`{name}`" not in index}
    measures = re.findall(r"`(\w+)`", next(row for row in index.splitlines() if "measure/metrics.py" in row))
    assert measures and all(hasattr(metrics, name) for name in measures)


def test_the_settings_on_the_method_page_exist():
    hints = get_type_hints(TrainConfig) | get_type_hints(ModelConfig)
    settings = re.findall(r'`(\w+)=("?)(\w+)"?`', METHOD)
    assert len(settings) >= 4
    for name, quoted, value in settings:
        assert name in hints and (not quoted or value in get_args(hints[name])), name
    for name in ("detach_f_r", "detach_swap", "conditional"):
        assert f"`{name}`" in METHOD and name in hints


def test_the_five_calls_run_as_printed(tmp_path, monkeypatch):
    """The code on the method page, executed where it says: in the folder of the repository or of the course."""
    code, _ = re.findall(r"```python\n(.*?)```", METHOD, re.S)
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    shape = (128, 128, 3)
    assert names["a"].shape == names["b"].shape == names["swapped_a"].shape == names["smile"].shape == shape
    assert (tmp_path / "smile.png").is_file() and names["au"].shape == (17,) and 0 <= names["au"].min()
    assert abs(names["swapped_a"].astype(int) - names["a"]).max() > 30


def test_a_data_folder_is_a_torch_data_set_as_printed(tiny_folder, tmp_path, monkeypatch):
    _, code = re.findall(r"```python\n(.*?)```", METHOD, re.S)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "faces").symlink_to(tiny_folder)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert len(names["items"]) == 24 and names["x"].shape == (8, 3, 16, 16)  # the last batch of 16 + 8
    item = names["items"][5]
    assert (item["image"] == names["faces"].images[5]).all() and (item["au"] == names["faces"].au[5]).all()
    assert names["au"].shape == (8, 3) and abs(names["x"]).max() <= 1


def test_the_results_are_those_of_the_shipped_weights_and_the_command_beside_them():
    about = json.loads((FOLDER / f"{TABLE[0]}.json").read_text())["about"]
    assert about["checkpoint"] == SHIPPED.name and about["command"].startswith("expr-lib evaluate --pairs ")
