"""What does each part of the method contribute? The same training without it, at equal images seen.

    python benchmarks/ablations.py runs/faces-64 --steps 3000          # started again, it goes on where it stopped

One warm-up is trained and shared; every variant goes on from its end for `--steps` steps, on the same batches and with
the same noise. Then all are measured as `expr-lib evaluate` measures, on the same held-out pairs. The full method and
the one without its adversary run with three seeds, so that the table shows how much a seed alone changes; the seed
decides batches and noise, not the warm-up that all share.

Writes benchmarks/results/ablations.json, .md and .png; runs and their results stay in the folder `--runs`.
"""

import argparse
import json
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from expr_lib import checkpoint, plots
from expr_lib.cli import held_out_faces
from expr_lib.datasets import FaceData
from expr_lib.evaluate import MEASURES, evaluate, write_results
from expr_lib.faces.render import load_renderer
from expr_lib.judges import load_judges
from expr_lib.train import TrainConfig, train

VARIANTS: dict[str, dict[str, Any]] = {  # what differs from the full method; a dict changes loss weights or sizes
    "full method": {},
    "no adversary on f_f": {"adversary": "none"},
    "gradient reversal": {"adversary": "reversal"},
    "inverted labels": {"adversary": "inverted"},
    "entropy": {"adversary": "entropy"},
    "no swap consistency": {"weights": {"swap": 0.0}},
    "swaps like the cross-cycle": {"consistency": "cycle"},
    "no cross-cycle": {"weights": {"cycle": 0.0}},
    "cross-cycle through both passes": {"detach_swap": False},
    "roomy f_f": {"model": {"noise": 0.1}},
    "no subject adversary": {"weights": {"hide_subject": 0.0}},
    "reconstruction reaches f_r": {"detach_f_r": False},
}
SEEDS = {"full method": 3, "no adversary on f_f": 3}  # the others: one
SHOWN = ("transfer_score", "au_icc", "own_expression_left", "identity_kept", "psnr")
LEAKS = {"leak_au": ("0.5", 2), "leak_id": ("1x", 1)}


def config_of(variant: str, seed: int, full: TrainConfig) -> TrainConfig:
    changes = dict(VARIANTS[variant])
    parts = {name: replace(getattr(full, name), **changes.pop(name, {})) for name in ("weights", "model")}
    return replace(full, seed=seed, **parts, **changes)


def learn(data: FaceData, runs: Path, full: TrainConfig) -> dict[tuple[str, int], Path]:
    """Train the warm-up once, then every variant -> (variant, seed): checkpoint."""
    warm = train(replace(full, steps=full.warmup_steps, cooldown=0.0), data, runs / "warm-up")
    done = {}
    for variant in VARIANTS:
        for seed in range(SEEDS.get(variant, 1)):
            run = runs / f"{variant.replace(' ', '-')}-{seed}"
            if not (run / warm.name).exists():
                run.mkdir(parents=True, exist_ok=True)
                shutil.copy(warm, run / "partial")
                os.replace(run / "partial", run / warm.name)
            print(f"{variant}, seed {seed}: {run}", flush=True)
            done[variant, seed] = train(config_of(variant, seed, full), data, run)
    return done


def figures(path: Path, pairs: int, device: str) -> dict[str, Any]:
    """What `evaluate` finds for a checkpoint, kept beside it for as long as the checkpoint and `pairs` are the same."""
    _, about = checkpoint.load(path)

    def measure() -> dict[str, Any]:
        swapper = checkpoint.load_swapper(path, device)
        plan = held_out_faces(swapper.config.size)
        results = evaluate(
            swapper, plan, load_renderer(device), load_judges(device), n_pairs=pairs, n_resamples=200, n_strata=0,
            n_moves=0, device=device,
        )  # fmt: skip
        leaks = {name: results["leaks"][name] for name in LEAKS}
        return {"step": about["step"], **results["rows"]["ours"], **leaks}

    return keep(path.with_name("ablation.json"), {"checkpoint": about["sha256"], "pairs": pairs}, measure)


def keep(path: Path, made: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What stands in `path` if it was made of the same, else what `measure` finds now, which then stands there."""
    if path.exists() and (found := json.loads(path.read_text()))["made"] == made:
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    write_results(path, {"made": made, **measure()})
    return json.loads(path.read_text())


def table(rows: list[dict[str, Any]], names: Collection[str], columns: Collection[str]) -> str:
    """Markdown: the mean over seeds, and in brackets their range, or with one seed the 95 % interval over people."""
    shown = {name: (MEASURES | LEAKS)[name] for name in columns}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--steps", type=int, default=3000, help="of each variant, after the warm-up")
    parser.add_argument("--warmup-steps", type=int, default=TrainConfig.warmup_steps)
    parser.add_argument("--pairs", type=int, default=200, help="held-out pairs to measure")
    parser.add_argument("--batch-size", type=int, default=TrainConfig.batch_size)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ablations.json")
    args = parser.parse_args()
    steps = args.warmup_steps + args.steps
    full = TrainConfig(
        steps=steps, warmup_steps=args.warmup_steps, batch_size=args.batch_size, cooldown=0.3 * args.steps / steps,
        ema=min(0.999, 1 - 10 / args.steps), sample_every=max(1, args.steps // 3), device=args.device,
    )  # fmt: skip
    done = learn(FaceData.open(args.data), args.runs, full)
    device = "cpu" if args.device == "cpu" else fastest()
    rows = [{"variant": v, "seed": s, **figures(path, args.pairs, device)} for (v, s), path in done.items()]
    images = 2 * (args.steps * args.batch_size + args.warmup_steps * full.warmup_batch_size)
    about = {"data": args.data.name, "steps": args.steps, "warmup_steps": args.warmup_steps, "images_seen": images,
             "pairs": args.pairs, "batch_size": args.batch_size}  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_results(args.out, {"about": about, "variants": {k: str(v) for k, v in VARIANTS.items()}, "rows": rows})
    note = (
        f"{args.steps} steps of {args.batch_size} pairs for each variant after one shared warm-up ({images:,} images "
        f"seen), {args.pairs} held-out pairs in both directions. In brackets the range over seeds, where there are "
        "several, else the 95 % interval over people. A difference smaller than the range over the seeds of the full "
        "method is noise."
    )
    text = f"{table(rows, VARIANTS, (*SHOWN, *LEAKS))}\n\n{note}\n"
    args.out.with_suffix(".md").write_text(text, encoding="utf-8")
    picture(rows, list(VARIANTS), (*SHOWN[:3], *LEAKS), args.out.with_suffix(".png"))
    print(f"{text}\nwritten: {args.out}")


def fastest() -> str:
    """The accelerator where there is one, else the CPU."""
    import torch

    return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"


if __name__ == "__main__":
    main()
