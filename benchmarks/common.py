"""What the comparisons of trainings share: short trainings, kept measurements, a table and a picture over seeds."""

import json
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expr_lib import checkpoint
from expr_lib.datasets import to_float
from expr_lib.faces.plan import FacePlan
from expr_lib.files import replace_file
from expr_lib.measure import plots
from expr_lib.measure.evaluate import MEASURES, pairs_of, write_results
from expr_lib.measure.metrics import estimates, gain, masked_l1, nearer
from expr_lib.model import Swapper
from expr_lib.step import TrainConfig

LEAKS = {"leak_au": ("0.5", 2), "leak_id": ("1x", 1)}
GROUPS = {"gain_coarse": ("↑ 1", 2), "gain_fine": ("↑ 1", 2)}
NONE = {"value": None, "low": None, "high": None}


def recipe(steps: int, warmup_steps: int, **settings: Any) -> TrainConfig:
    """The defaults for a short training of `steps` steps after the warm-up: it cools down and averages in time."""
    return TrainConfig(
        steps=warmup_steps + steps, warmup_steps=warmup_steps, cooldown=0.3 * steps / (warmup_steps + steps),
        ema=min(0.999, 1 - 10 / max(steps, 11)), sample_every=max(1, steps // 3), **settings,
    )  # fmt: skip


def begin_with(warm: Path, run: Path) -> None:
    """A run that has not begun goes on from the checkpoint `warm`."""
    if not (run / warm.name).exists():
        run.mkdir(parents=True, exist_ok=True)
        replace_file(run / warm.name, warm.read_bytes())


def write_encoder(source: Path, target: Path) -> None:
    """A checkpoint with the encoder and the AU branch of `source`, and a generator with random weights."""
    swapper = Swapper(replace(checkpoint.load_swapper(source).config, generator="drawn"))
    checkpoint.start_from(source, swapper)  # the drawn generator does not fit the moved one, so it stays as it is
    target.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(target, checkpoint.module_tensors("ema", swapper), checkpoint.describe(swapper, step=0))


def leaks_of(results: dict[str, Any]) -> dict[str, Any]:
    """`LEAKS` as `evaluate` found them; undefined where there was no probe."""
    return {name: (results["leaks"] or {}).get(name, NONE) for name in LEAKS}


def keep(path: Path, made: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What stands in `path` if it was made of the same, else what `measure` finds now, which then stands there."""
    if path.exists() and (found := json.loads(path.read_text()))["made"] == made:
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    write_results(path, {"made": made, **measure()})
    return json.loads(path.read_text())


@torch.no_grad()
def gains(swapper: Any, plan: FacePlan, renderer: Any, n_pairs: int) -> tuple[dict[str, Any], Tensor]:
    """`gain` and `nearer` of swaps of the held-out pairs of a plan in both directions, with 95 % intervals over people.

    Also returns the pictures a, b, swap and true answer of the first pairs, (4, n, S, S, 3) in [-1, 1].
    """
    pairs = pairs_of(plan, n_pairs)
    errors, people, shown = [], [], torch.empty(0)
    for chunk in np.array_split(pairs, -(-len(pairs) // 32)):
        rows = chunk.T.reshape(-1)  # all a, then all b
        other = np.roll(rows, len(chunk))
        pixels, _ = plan.render(renderer, rows)
        true_pixels, mask = plan.render(renderer, rows, au_rows=other)
        image, truth = (to_float(x).permute(0, 3, 1, 2) for x in (pixels, true_pixels))
        f_f, f_r = swapper.encode(image)
        swap = swapper.generate(f_f, f_r.roll(len(chunk), 0)).float()
        errors.append(torch.stack([masked_l1(x, truth, mask) for x in (swap, image)]).double())
        people.append(plan.subject[rows])
        if not len(shown):
            shown = torch.stack([image, image.roll(len(chunk), 0), swap, truth])[:, : len(chunk)].permute(0, 1, 3, 4, 2)
    swapped, copied = torch.cat(errors, 1)

    def statistic(i: Tensor) -> Tensor:
        return torch.stack([gain(swapped[i], copied[i]), nearer(swapped[i], copied[i])])

    found = estimates(statistic, torch.cat(people).numpy(), n_resamples=200)
    return dict(zip(("gain", "nearer"), found, strict=True)), shown


def table(rows: list[dict[str, Any]], names: Collection[str], columns: Collection[str]) -> str:
    """Markdown: the mean over seeds, and in brackets their range, or with one seed the 95 % interval over people."""
    shown = {name: (MEASURES | LEAKS | GROUPS)[name] for name in columns}
    lines = ["| | seeds | " + " | ".join(f"`{name}` {better}" for name, (better, _) in shown.items()) + " |"]
    lines.append("|---" * (len(shown) + 2) + "|")
    for variant in names:
        mine = [row for row in rows if row["variant"] == variant]
        cells = []
        for name, (_, digits) in shown.items():
            mean, low, high = interval(mine, name)
            cell = f"{mean:.{digits}f} ({low:.{digits}f} – {high:.{digits}f})"
            cells.append("–" if np.isnan(mean) else cell)
        lines.append(f"| {variant} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(rows: list[dict[str, Any]], name: str) -> tuple[float, float, float]:
    values = [np.nan if row[name]["value"] is None else row[name]["value"] for row in rows]
    if len(values) > 1:
        return float(np.mean(values)), min(values), max(values)
    low, high = (np.nan if x is None else x for x in (rows[0][name]["low"], rows[0][name]["high"]))
    return values[0], low, high


def picture(rows: list[dict[str, Any]], names: list[str], panels: Collection[str], path: Path) -> None:
    """A panel for each measure; a dot for each seed, a line for the 95 % interval over people; the first in blue."""
    import matplotlib.pyplot as plt

    seeds = {name: [row["seed"] for row in rows if row["variant"] == name] for name in names}
    with plots.style():
        figure, axes = plt.subplots(
            1, len(panels), figsize=(3.1 * len(panels), 0.5 * len(names) + 1.6), sharey=True, layout="constrained"
        )
        for axis, measure in zip(axes, panels, strict=True):
            for row in rows:
                y = names.index(row["variant"]) + 0.18 * (row["seed"] - (len(seeds[row["variant"]]) - 1) / 2)
                value, low, high = (np.nan if x is None else x for x in row[measure].values())
                color = plots.COLORS["blue"] if row["variant"] == names[0] else plots.INK
                axis.plot([low, high], [y, y], color=color, linewidth=1.5, alpha=0.6)
                axis.plot(value, y, "o", color=color, markersize=6)
            full = np.nanmean([np.nan if r[measure]["value"] is None else r[measure]["value"] for r in rows
                               if r["variant"] == names[0]])  # fmt: skip
            axis.axvline(full, color=plots.COLORS["blue"], linewidth=1, linestyle=":")
            axis.set_title(measure, fontsize=14)
            axis.margins(x=0.12)
            axis.locator_params(axis="x", nbins=4)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.5, -0.5)  # the first on top
        plots.save(figure, path)
        plt.close(figure)
