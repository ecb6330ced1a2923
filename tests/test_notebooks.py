"""The notebooks are clean in git, say what they teach, run from top to bottom, and print the numbers they claim.

The bands that a notebook's `metrics.json` must stay within are in `notebook_bands.json`: a path into it, and the
lowest and highest value, or `[">", path, margin]` for a number that must beat another one by a margin.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import papermill
import pytest
import torch

from expr_lib import losses
from expr_lib.images import read_image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BANDS = json.loads((Path(__file__).parent / "notebook_bands.json").read_text())
SMALL: dict[str, dict[str, int]] = {  # the parameters of a test, where a learner's take longer
    "02_why_an_autoencoder_tangles": {"steps": 360},
    "03_adversarial_disentanglement": {"steps": 200, "n_people": 100},
    "04_swapping_and_swap_consistency": {"warmup": 300, "steps": 80},
    "05_training_for_real": {"steps": 36},
    "06_does_it_work": {"n_pairs": 40, "n_resamples": 100},
    "07_the_feature_spaces": {"n_people": 16, "n_images": 20},
    "10_a_generator_that_moves": {"n_people": 50, "steps": 240, "short": 48, "n_pairs": 25},
}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def prose(notebook: nbformat.NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_there_are_notebooks_and_bands_for_each():
    assert NOTEBOOKS and {path.stem for path in NOTEBOOKS} == set(BANDS)


@each_notebook
def test_its_sections_are_numbered_without_a_gap(path):
    numbers = [int(n) for n in re.findall(r"^## (\d+) ·", prose(read(path)), re.MULTILINE)]
    assert numbers and numbers == list(range(1, len(numbers) + 1))


def test_what_notebook_03_says_of_three_seeds_is_so():
    """Its figures show `benchmarks/results/seeds.json`; its text names the order in all runs, and where it changes."""
    runs = list(
        json.loads((ROOT / "benchmarks/results/seeds.json").read_text())["03_adversarial_disentanglement"].values()
    )
    assert len(runs) == 3

    def of(name: str, measure: str, part: str = "") -> list[float]:
        return [(run[part] if part else run)[name][measure] for run in runs]

    def below(*columns: list[float]) -> list[bool]:
        return [list(row) == sorted(row) for row in zip(*columns, strict=True)]

    toy = [of(name, "fresh probe", "toy") for name in ("uniform", "inverted")]
    assert below(*toy) == [False, True, True]
    assert all(below(of("uniform", "swap error", "toy"), of("inverted", "swap error", "toy")))
    hidden = {name: of(name, "fresh probe") for name in ("reversal", "entropy", "uniform")}
    assert max(map(max, hidden.values())) < 0.4 < 0.5 < min(of("inverted", "fresh probe"))
    pixels = [of(name, "pixels") for name in ("none", "reversal", "uniform", "entropy", "inverted")]
    assert all(below(*pixels))
    assert all(0.9 < x - y < 4 for column in pixels[1:] for x, y in zip(column, pixels[0], strict=True))
    four = [of(name, "transfer") for name in ("uniform", "inverted", "entropy", "reversal")]
    assert 0 < [min(row) == row[0] for row in zip(*four, strict=True)].count(True) < 3  # is `uniform` the lowest?
    for name in ("no detach", "not frozen"):
        assert all(below(of(name, "transfer"), four[0]))
    assert all(below(pixels[2], of("no detach", "pixels")))
    more = [x - y for x, y in zip(of("not frozen", "fresh probe"), hidden["uniform"], strict=True)]
    assert sorted(x > 0.05 for x in more) == [False, True, True]


def test_what_notebook_04_says_of_three_seeds_is_so():
    runs = json.loads((ROOT / "benchmarks/results/seeds.json").read_text())["04_swapping_and_swap_consistency"]

    def gained(name: str, measure: str) -> list[float]:
        """In each run: the measure of this network less that of the network with the adversary alone."""
        both = [run["verdicts"] if measure in run["verdicts"][name] else run for run in runs.values()]
        return [float(x[name][measure] - x["+ adversary"][measure]) for x in both]

    error, distance = "error of self, gray levels", "swap to truth, gray levels"
    assert max(gained("+ guidance", "stayed")) < 0
    assert [round(x, 2) for x in gained("+ guidance", "transfer")] == [0.01, 0.05, 0.12]
    worse = gained("+ guidance", error)
    assert round(min(worse), 1) == 0.3 and round(max(worse), 1) == 0.7
    assert min(gained("+ guidance", distance)) > 0
    assert all(abs(x) < 0.02 for measure in ("stayed", "cycle") for x in gained("+ detached swap", measure))
    assert sorted(x > 0 for x in gained("+ detached swap", "transfer")) == [False, True, True]
    assert all(-0.1 < x < 0 for x in gained("+ detached swap", distance))
    assert min(gained("strong guidance", error)) > 5 < min(gained("strong guidance", distance))
    assert min(gained("strong guidance", "its own AU branch says b")) > 0


# -- as they stand in git ------------------------------------------------------------------------------------------


@each_notebook
def test_no_output_is_kept(path):
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, f"cell {cell.id}: strip it (nbstripout {path})"
        assert not {"papermill", "execution", "ExecuteTime", "collapsed"} & set(cell.metadata), f"cell {cell.id}"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}  # no widget state, nothing of papermill
    assert notebook.metadata.kernelspec.name == "python3"


@each_notebook
def test_one_cell_holds_the_parameters(path):
    tagged = [cell for cell in read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0].cell_type == "code"
    names: dict[str, object] = {}
    exec(tagged[0].source, names)  # nothing but plain values
    names.pop("__builtins__")
    assert {"seed", "device", "out"} <= set(names) and names["device"] == "cpu"
    assert all(isinstance(value, (int, float, str, bool)) for value in names.values())


@each_notebook
def test_the_header_says_what_to_expect(path):
    header = read(path).cells[0].source
    assert header.startswith(f"# {path.stem[:2]} · ")
    for field in ("You will learn", "Prerequisites", "Time", "Hardware"):
        assert f"| **{field}** | " in header
    assert "minute" in header


@each_notebook
def test_questions_have_folded_answers_and_there_are_exercises_and_a_summary(path):
    text = prose(read(path))
    questions = text.split("## Questions")[1].split("\n## ")[0]
    assert 3 <= questions.count("<details><summary>Answer</summary>") == questions.count("</details>") <= 5
    assert text.count("\n## Exercises") == text.count("\n## Summary") == 1


@each_notebook
def test_it_reads_as_prose_with_a_little_code(path):
    cells = read(path).cells
    for cell in cells:
        assert cell.cell_type != "code" or cell.source.count("\n") < 30, f"cell {cell.id}: too long to read"
    for one, two, three in zip(cells, cells[1:], cells[2:], strict=False):
        assert "markdown" in (one.cell_type, two.cell_type, three.cell_type), f"cell {two.id}: no word around it"


def practice(path: Path) -> list[tuple[str, nbformat.NotebookNode, nbformat.NotebookNode, nbformat.NotebookNode]]:
    """(text above, cell to fill in, solution, check) of each practice task of a notebook."""
    cells, found = read(path).cells, []
    for k, cell in enumerate(cells):
        if "exercise" in cell.metadata.get("tags", []):
            solution, check = [c for c in cells[k + 1 : k + 5] if c.cell_type == "code"][:2]
            found.append((cells[k - 1].source, cell, solution, check))
    return found


@each_notebook
def test_each_practice_task_has_a_difficulty_a_folded_solution_and_a_check(path):
    tasks = practice(path)
    assert 3 <= len(tasks) <= 5
    for text, cell, solution, check in tasks:
        head = cell.source.partition("raise NotImplementedError(")[0]
        assert head != cell.source and solution.source.startswith(head.rstrip()) and head.startswith("def ")
        assert re.search(r"\*\*(Practice \d|Your turn) \((easy|medium|hard)\)\.\*\* ", text), f"cell {cell.id}"
        assert "solution" in solution.metadata.tags and solution.metadata.jupyter.source_hidden
        assert "assert" in check.source and "NotImplementedError" not in solution.source


@each_notebook
def test_each_exercise_has_a_solution_or_is_a_project_and_says_so(path):
    """A solution is folded text behind the exercise, or a folded cell behind a cell with a start; both run here."""
    cells = read(path).cells
    begin = next(k for k, cell in enumerate(cells) if "\n## Exercises\n" in cell.source)
    behind = []
    for cell in cells[begin:]:
        tags = cell.metadata.get("tags", [])
        if "solution" in tags:
            assert "starter" in cells[cells.index(cell) - 2].metadata.tags and cell.metadata.jupyter.source_hidden
        behind.append("<summary>Solution</summary>" if "solution" in tags else "" if tags else cell.source)
    text = re.split(r"\n## |\n\*\*Assign", "\n".join(behind).split("\n## Exercises\n")[1])[0]
    for exercise in re.split(r"(?m)^(?=\d\. \*\()", text)[1:]:
        is_project = bool(re.match(r"\d\. \*\(\w+\)\* \*\*Project\.\*\* ", exercise))
        assert exercise.count("<summary>Solution</summary>") == (not is_project), exercise
    assert ("**Project**" in text.split("\n1. ")[0]) == ("**Project.**" in text), "the introduction explains the word"


@each_notebook
def test_exercises_have_a_difficulty_and_readers_predict_before_they_run(path):
    text = prose(read(path))
    exercises = re.split(r"\n## |\n\*\*Assign", text.split("\n## Exercises\n")[1])[0]
    numbered = re.findall(r"(?m)^\d\. .*", exercises)
    assert len(numbered) >= 4 and all(re.match(r"\d\. \*\((easy|medium|hard)\)\* ", line) for line in numbered)
    assert text.count("**Predict first:**") >= 2


@each_notebook
def test_the_cell_that_writes_metrics_json_is_folded(path):
    (cell,) = [c for c in read(path).cells if c.cell_type == "code" and "metrics" in c.metadata.get("tags", [])]
    assert cell.metadata.jupyter.source_hidden and "write_results(" in cell.source


# -- as they run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Execute a notebook as a learner would, once -> the executed notebook and its metrics."""
    done: dict[Path, tuple[nbformat.NotebookNode, dict]] = {}

    def execute(path: Path) -> tuple[nbformat.NotebookNode, dict]:
        if path not in done:
            folder = tmp_path_factory.mktemp(path.stem)
            executed = papermill.execute_notebook(
                path, folder / path.name, SMALL.get(path.stem, {}) | {"out": str(folder)}, cwd=path.parent,
                kernel_name="python3", progress_bar=False,
            )  # fmt: skip
            done[path] = executed, json.loads((folder / "metrics.json").read_text())
        return done[path]

    return execute


@pytest.fixture(autouse=True)
def as_in_jupyterlab(monkeypatch, tmp_path):
    """A backend without a display is named, as on a server, and nothing is written to the home folder."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@each_notebook
def test_it_runs_without_an_error_anywhere(path, run):
    executed, _ = run(path)
    for cell in executed.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            if output.output_type == "stream" and output.name == "stderr":
                assert "Warning" not in output.text, f"cell {cell.id}: {output.text}"
    # an exception inside `interact` does not stop papermill: it sits in the saved state of a widget
    assert '"output_type": "error"' not in json.dumps(executed.metadata.get("widgets", {}))


@each_notebook
def test_every_figure_is_shown(path, run):
    executed, _ = run(path)
    draws = ("plots.grid(", "plots.sheet(", "plots.swaps(", "plt.subplots(")
    for cell in executed.cells:
        if cell.cell_type == "code" and any(word in cell.source for word in draws):
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), f"cell {cell.id}: no picture"
        for output in cell.get("outputs", []):  # a figure as the value of a cell is drawn a second time: end it with ;
            assert output.output_type != "execute_result" or "image/png" not in output.data, f"cell {cell.id}: twice"


def test_the_picture_on_top_of_the_readme_is_that_of_notebook_00(run):
    executed, _ = run(ROOT / "notebooks" / "00_start_here.ipynb")
    made = read_image(Path(executed.metadata.papermill.output_path).parent / "swap.png").astype(int)
    shown = read_image(ROOT / "notebooks" / "figures" / "swap.png").astype(int)
    assert made.shape == shown.shape and abs(made - shown).mean() < 1, "make results writes it anew"


def at(metrics: dict, path: str) -> float:
    value = metrics
    for key in path.split("/"):
        value = value[key]
    return float(value)  # type: ignore[arg-type]


def outside(band: list, where: str, metrics: dict) -> str | None:
    """What is wrong with one number, None where nothing is."""
    value = at(metrics, where)
    if band[0] == ">":
        beaten = value > at(metrics, band[1]) + band[2]
        return None if beaten else f"{where}: {value:.3f} does not beat {band[1]} by {band[2]}"
    return None if band[0] <= value <= band[1] else f"{where}: {value:.3f} is outside {band}"


@each_notebook
def test_its_numbers_stay_within_their_bands(path, run):
    _, metrics = run(path)
    wrong = [outside(band, where, metrics) for where, band in BANDS[path.stem].items()]
    assert not any(wrong), "; ".join(filter(None, wrong))


# -- would they notice? --------------------------------------------------------------------------------------------


@pytest.fixture
def toy_of_03():
    """Plays the toy of notebook 03, its own cells, after replacing text in them -> the bands that it then breaks."""

    def play(*replaced: tuple[str, str]) -> list[str]:
        cells = [cell.source for cell in read(ROOT / "notebooks" / "03_adversarial_disentanglement.ipynb").cells
                 if cell.cell_type == "code"]  # fmt: skip
        last = next(k for k, source in enumerate(cells) if "def play_toy(" in source)
        source = "\n".join(cells[: last + 1])
        for old, new in replaced:
            assert old in source
            source = source.replace(old, new)
        scope: dict = {}
        state = torch.get_rng_state()
        try:
            exec(source, scope)
            metrics = {"toy": {"uniform": scope["play_toy"]("uniform")[0]}}
        finally:
            torch.set_rng_state(state)
            plt.close("all")
        bands = BANDS["03_adversarial_disentanglement"].items()
        wrong = [outside(band, where, metrics) for where, band in bands if where.startswith("toy/uniform")]
        return [text for text in wrong if text]

    return play


def test_a_sound_loss_breaks_no_band(toy_of_03):
    assert toy_of_03() == []


def test_a_loss_with_the_wrong_sign_breaks_a_band(toy_of_03, monkeypatch):
    tell, hide = losses.ADVERSARIES["uniform"]
    monkeypatch.setitem(losses.ADVERSARIES, "uniform", (tell, lambda *given: -hide(*given)))
    assert toy_of_03()


def test_a_missing_detach_breaks_a_band(toy_of_03):
    assert toy_of_03(("f_f.detach() if detach else f_f", "f_f"))
