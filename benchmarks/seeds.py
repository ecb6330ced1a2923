"""Do the comparisons of notebooks 03 and 04 hold for other seeds?

    python benchmarks/seeds.py     # half an hour on two cores -> benchmarks/results/seeds.json

For each seed, a notebook is executed with its defaults up to the cell that writes its numbers, and these are kept. A
run that was interrupted continues with the next seed. Notebook 03 shows the result file, so measure a changed notebook
with another `--out`, and then replace the file.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import papermill
import tyro

from expr_lib.measure.evaluate import write_results

ROOT = Path(__file__).parents[1]
COMPARED = ("03_adversarial_disentanglement", "04_swapping_and_swap_consistency")


def metrics_of(name: str, seed: int) -> dict[str, Any]:
    """Execute the cells of a notebook up to the one that writes `metrics.json` -> its content."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    last = next(k for k, cell in enumerate(notebook.cells) if "metrics" in cell.metadata.get("tags", []))
    notebook.cells = notebook.cells[: last + 1]
    with tempfile.TemporaryDirectory() as folder:
        given, done = Path(folder) / "given.ipynb", Path(folder) / "done.ipynb"
        nbformat.write(notebook, given)
        papermill.execute_notebook(
            given, done, {"seed": seed, "out": folder}, cwd=ROOT / "notebooks", kernel_name="python3",
            progress_bar=False,
        )  # fmt: skip
        return json.loads((Path(folder) / "metrics.json").read_text())


def main(
    out: Path = ROOT / "benchmarks" / "results" / "seeds.json", names: tuple[str, ...] = COMPARED,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> None:  # fmt: skip
    """Measure each seed that `out` does not have yet: `{notebook: {seed: metrics}}`."""
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    for name in names:
        for seed in map(str, seeds):
            if seed not in found.setdefault(name, {}):
                found[name][seed] = metrics_of(name, int(seed))
                write_results(out, found)
                print(f"{name}: seed {seed}")


if __name__ == "__main__":
    tyro.cli(main)
