"""The practice tasks: a solution passes its checks, and a likely mistake fails with the message that names it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# what a student may write instead of a part of the solution, and a part of the message that should say so
MISTAKES = [
    ("au_vector", "AU_NAMES.index(name)", "int(name[2:]) % 17", "not its position"),
    ("missing_corners", "(a[0], b[1]), (b[0], a[1])", "(b[0], a[1]), (a[0], b[1])", "the person of a"),
    ("error_inside", ".astype(float)", "", "246 in uint8"),
    ("share_present", "labelled = (~au.isnan()).sum(0)", "labelled = len(au)", "labelled images"),
    ("given_row", "[:, None]", "[None]", "each column"),
    ("held_out", "np.isin(person, chosen)", "rng.permutation(np.isin(person, chosen))", "draw people"),
    ("rotate", "cd,bdyx", "dc,bdyx", "not its transpose"),
    ("exchange", "torch.where(chosen, one, other)", "other", "given away"),
    ("bits", "noise**2", "noise", "square"),
    ("no_information", "(n_classes - 1) / n_classes**2", "1 / n_classes**2", "C - 1 others"),
    ("best_constant", " / (p * w).sum()", "", "normalize"),
    ("information_bound", "n_classes * hidden", "hidden", "multiply by C"),
    ("routed", ".detach()", "", "detach f_f"),
    ("routed", "with frozen(D):", "if True:", "freeze D"),
    ("best_answer", "0.5 * ", "", "factor 1/2"),
    ("copied", "amax((1, 2, 3))", "mean((1, 2, 3)).mul(0.05)", "largest change"),
    (
        "there_and_back",
        "swap_a, swap_b, generate(f_f_a, f_r_b), generate(f_f_b, f_r_a)",
        "swap_a, swap_b, generate(f_f_a, f_r_a), generate(f_f_b, f_r_b)",
        "swap again",
    ),
    ("averaged", "mul_(keep).add_((1 - keep)", "mul_(1 - keep).add_(keep", "share of the average"),
    ("rows_of", "[seed, step]", "seed + step", "not enough"),
    ("save_whole", 'path.with_suffix(".partial")', "path", "damaged"),
    ("share_nearer", "<", "<=", "not nearer than itself"),
    ("threshold_for", "1 - rate", "rate", "above the threshold"),
    (
        "interval_of_difference",
        "one[drawn].mean() - other[drawn].mean()",
        "one[drawn].mean() - rng.choice(other, len(other)).mean()",
        "same people",
    ),
    (
        "nearest_stranger",
        "same = person[:, None] == person[None]",
        "same = np.eye(len(person), dtype=bool)",
        "must not vote",
    ),
    ("shared", "len(np.intersect1d(a, b))", "(a == b).sum()", "order"),
    ("on_scale", ' if pixels > chance else float("nan")', " if pixels > chance else 0.0", "nothing about the feature"),
    ("mix_named", "w * (f_r_b - f_r_a)", "weight * (f_r_b - f_r_a)", "fifteen"),
    ("spilt_share", "np.abs(table).sum() - np.abs(asked).sum()", "table.sum() - asked.sum()", "falls"),
    (
        "even_weights",
        "np.interp(wanted, judged, weight)",
        "np.interp(np.linspace(0, 1, n + 1), weight, judged)",
        "other way round",
    ),
    ("codes_to_labels", "np.nan, codes.astype(float)", "0.0, codes.astype(float)", "must become NaN"),
    ("blended", "np.rint", "np.floor", "round first"),
    ("fit_similarity", "[y, x, none, one]", "[-y, x, none, one]", "sine"),
    (
        "sees",
        "        side += (kernel - 1) * step\n        step *= stride",
        "        step *= stride\n        side += (kernel - 1) * step",
        "after it",
    ),
]


def tasks() -> dict[str, tuple[list[str], str, str]]:
    """{function: (code cells of its notebook, solution, check)} of every task of the sections called Practice."""
    found = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = {c.id: c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"}
        for name, source in cells.items():
            if "-practice-" in name and name.endswith("-solution"):
                check = cells[name.removesuffix("solution") + "check"]
                found[source.split("(")[0].removeprefix("def ")] = list(cells.values()), source, check
    return found


TASKS = tasks()


def imported(cells: list[str]) -> dict[str, Any]:
    """What the notebook imports; the checks of practice tasks use nothing else."""
    scope: dict[str, Any] = {}
    for node in [node for source in cells for node in ast.parse(source).body]:
        if isinstance(node, ast.Import | ast.ImportFrom) and "umap" not in ast.unparse(node):  # slow to import
            exec(ast.unparse(node), scope)
    return scope


@pytest.mark.parametrize("name", TASKS)
def test_a_solution_passes_its_checks(name):
    cells, solution, check = TASKS[name]
    scope = imported(cells)
    exec(solution, scope)
    exec(check, scope)
    plt.close("all")


def test_there_is_a_mistake_for_each_task():
    assert {name for name, *_ in MISTAKES} == set(TASKS)


@pytest.mark.parametrize("name, right, wrong, message", MISTAKES)
def test_a_likely_mistake_fails_with_the_message_for_it(name, right, wrong, message):
    cells, solution, check = TASKS[name]
    assert right in solution
    scope = imported(cells)
    exec(solution.replace(right, wrong), scope)
    with pytest.raises(AssertionError, match=message):
        exec(check, scope)
