"""Does explicit transfer beat editing by predicted labels? Ours and four baselines, on the same data, beside the truth.

    python benchmarks/compare.py runs/faces-64                       # started again, it goes on where it stopped
    python benchmarks/compare.py runs/faces-64 --seconds --noise 0 10 30

First the AU branch of ours warms up alone, once for all. Then ours goes on from it, and each editor has it as guide;
DRIT, which is told nothing, has no use for it. All learn for the same `--steps` from the same batches, and are measured
as `expr-lib evaluate` measures, on the same held-out pairs. The two best run with further seeds. `--seconds` trains the
baselines once more, for as long as ours took. `--noise` replaces a share of the training labels (per cent) by those of
other images, for ours and the GANimation-style editor. Once the warm-up is there, several processes may run this at
once, each with other runs to `--train`; a last one, without it, measures.

An editor is guided by the AUs that the AU branch of the shipped weights reads, and once more by the true ones. In the
noise study the branch of ours that learnt from the same noisy labels reads. No judge trains or guides anything.

Writes benchmarks/results/compare.json, .md, .png, -gallery.png and, with `--noise`, -noise.png; runs and what was
measured of each stay in the folder `--runs`.
"""

import argparse
import copy
import math
import signal
import time
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from baselines import (
    METHODS,
    Baseline,
    BaselineConfig,
    Editor,
    TrueLabels,
    branch,
    build,
    like_ours,
    n_parameters,
    train_step,
)
from common import LEAKS, NONE, begin_with, interval, keep, leaks_of, picture, recipe, table
from tqdm import tqdm

from expr_lib import FIRST, checkpoint
from expr_lib.apps.held_out import held_out_faces
from expr_lib.datasets import FaceData, batches, to_uint8
from expr_lib.faces.render import load_renderer
from expr_lib.measure import plots
from expr_lib.measure.evaluate import MEASURES, evaluate, pairs_of, write_results
from expr_lib.measure.judges import load_judges
from expr_lib.measure.probes import render
from expr_lib.signals import stop_signals
from expr_lib.step import TrainConfig, batch_of
from expr_lib.train import accelerator, average, train

TRIVIAL = ("copy-input", "copy-other", "render of what is read", "true render")
PANELS = ("transfer_score", "au_icc", "own_expression_left", "identity_kept", "ssim", "kid")


class Run(NamedTuple):
    """One training."""

    method: str  # "ours" or one of METHODS
    seed: int = 0
    noise: int = 0  # per cent of the training labels that are those of other images
    timed: bool = False  # for as long as ours, instead of for as many images

    @property
    def name(self) -> str:
        more = [f"noise-{self.noise}"] * (self.noise > 0) + ["timed"] * self.timed
        return "-".join([self.method.replace(" ", "-"), str(self.seed), *more])


# ------------------------------------------------------------------------------------------------------- training


def noisy(data: FaceData, share: float, seed: int = 0) -> FaceData:
    """The same images, but each training label is, with probability `share`, that of another training image."""
    rows, rng = np.flatnonzero(data.split == "train"), np.random.default_rng(seed)
    own, au = data.au[rows], data.au.copy()  # (N, n), all
    other = (np.arange(len(rows))[:, None] + rng.integers(1, len(rows), own.shape)) % len(rows)  # never the same image
    au[rows] = np.where(rng.random(own.shape) < share, np.take_along_axis(own, other, 0), own)
    return replace(data, au=au)


def learn(
    name: str, c: BaselineConfig, data: FaceData, config: TrainConfig, folder: Path, *, steps: int,
    seconds: float = 0.0, guide: Path | None = None,
) -> Path:  # fmt: skip
    """Train a baseline for so many steps, or for so many seconds of steps if given, or go on -> its checkpoint.

    `guide` is a checkpoint whose AU branch guides an editor.

    Batches, seeds, precision, averaging and checkpoints are those of `expr_lib`; of `config` are taken
    batch_size, ema, seed, device, precision and save_every. The rate falls to 0 over the second half, as in StarGAN.
    A run that was killed and started again ends with the same bits, unless it ends by the clock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = replace(config, model=replace(config.model, size=data.size, n_aus=len(data.au_names)))
    path, here, learns = folder / "checkpoint.safetensors", accelerator(config), data.subset("train")
    torch.manual_seed(config.seed)
    method = build(name, c).to(here.device, memory_format=torch.channels_last)
    method.autocast = here.autocast
    if guide is not None and isinstance(method, Editor):
        method.guide = checkpoint.load_swapper(guide, str(here.device))
    ema = copy.deepcopy(method.G).eval().requires_grad_(False)
    nets, optimizers = {"G": method.G, "D": method.D, "ema": ema}, {"opt_G": method.opt_G, "opt_D": method.opt_D}
    about: dict[str, Any] = {"method": name, "baseline": asdict(c), "step": 0, "seconds": 0.0}
    if (last := checkpoint.load_last(path)) is not None:
        about = {key: last[1][key] for key in about}
        for key, net in nets.items():
            checkpoint.load_module(key, net, last[0], path)
        for key, optimizer in optimizers.items():
            checkpoint.load_optimizer(key, optimizer, last[0])

    def save() -> None:
        tensors = [checkpoint.module_tensors(k, net) for k, net in nets.items()]
        tensors += [checkpoint.optimizer_tensors(k, optimizer) for k, optimizer in optimizers.items()]
        checkpoint.save(path, {k: t for part in tensors for k, t in part.items()}, about, keep_previous=True)

    subjects = torch.from_numpy(np.unique(learns.subject[learns.subject >= 0])).to(here.device)
    pairs = batches(learns, config.batch_size, seed=config.seed, device=here.device, first=about["step"])
    with (
        stop_signals(signal.SIGINT, signal.SIGTERM) as stop,
        tqdm(total=steps, initial=about["step"], unit="step", dynamic_ncols=True) as bar,
    ):
        while (done := about["seconds"] / seconds if seconds else about["step"] / steps) < 1:
            began, step = time.perf_counter(), about["step"]
            torch.manual_seed(config.seed * 1_000_003 + step)
            batch = batch_of(next(pairs), subjects, config)
            for group in (group for optimizer in optimizers.values() for group in optimizer.param_groups):
                group["lr"] = c.lr * min(1.0, 2 * (1 - done))
            loss = train_step(method, batch, step)
            average(ema, method.G, config.ema, step)
            values = dict(zip(loss, torch.stack(list(loss.values())).tolist(), strict=True))  # waits for the GPU
            about |= {"step": step + 1, "seconds": about["seconds"] + time.perf_counter() - began}
            bar.update()
            if not all(map(math.isfinite, values.values())):
                raise FloatingPointError(f"{folder}: step {step}: a loss is not finite: {values}")
            if (step + 1) % config.save_every == 0 or stop:
                save()
                bar.set_postfix_str(" ".join(f"{k} {v:.3g}" for k, v in values.items()))
            if stop:
                raise KeyboardInterrupt
    if last is None or last[1]["step"] < about["step"]:
        save()
    return path


def trained(run: Run, data: FaceData, config: TrainConfig, args: argparse.Namespace) -> Path:
    """Train it, or go on -> its checkpoint."""
    folder, noise = args.runs / run.name, f"-noise-{run.noise}" * (run.noise > 0)
    learns = noisy(data, run.noise / 100) if run.noise else data
    print(f"{run.name}: {folder}", flush=True)
    warm = train(replace(config, steps=config.warmup_steps, cooldown=0.0), learns, args.runs / f"warm-up{noise}")
    config = replace(config, seed=run.seed)
    if run.method == "ours":
        begin_with(warm, folder)
        return train(config, learns, folder, allow_changes=True)  # it goes on from the warm-up
    c = BaselineConfig(size=data.size, n_aus=len(data.au_names), critic_steps=args.critic_steps, lr=args.lr)
    c = c if args.width == "published" else like_ours(run.method, c)
    seconds = seconds_of(args.runs / "ours-0", config) if run.timed else 0.0
    return learn(run.method, c, learns, config, folder, steps=args.steps, seconds=seconds, guide=warm)


def seconds_of(run: Path, config: TrainConfig) -> float:
    """How long the steps of a run of ours took: from the times in its log, as medians, so that pauses do not count.

    A run that began with a warm-up trained elsewhere does not have it in its log: it does not count.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0}).Reload().Scalars("loss/au")
    step, wall = np.array([(event.step, event.wall_time) for event in events]).T
    pace, warm = np.diff(wall) / np.diff(step), step[1:] <= config.warmup_steps
    parts = ((config.warmup_steps, pace[warm]), (config.steps - config.warmup_steps, pace[~warm]))
    return float(sum(n * np.median(part) for n, part in parts if n and len(part)))


# ------------------------------------------------------------------------------------------------------ measuring


def open_swapper(path: Path, read: Any, device: str) -> Any:
    """Ours or a baseline, in eval mode, with the averaged weights of a checkpoint."""
    tensors, about = checkpoint.load(path, device)
    if "baseline" not in about:
        return checkpoint.load_swapper(path, device)
    method: Baseline = build(about["method"], BaselineConfig(**about["baseline"]), read).to(device)
    checkpoint.load_module("ema", method.G, tensors, path)
    return method.eval()


def measured(path: Path, guide: Path | str, folder: Path, args: argparse.Namespace, device: str) -> dict[str, Any]:
    """What `evaluate` finds; `guide` is a checkpoint whose AU branch reads, "true AUs", or "" where none is needed."""
    about = checkpoint.load(path)[1]
    known = checkpoint.load(guide)[1]["sha256"] if isinstance(guide, Path) else guide
    made = {"checkpoint": about["sha256"], "guide": known, "pairs": args.pairs, "probe": args.probe}

    def measure() -> dict[str, Any]:
        renderer, read = load_renderer(device), None
        if guide == "true AUs":
            renderer = TrueLabels(renderer)
            read = renderer.read
        elif guide:
            read = branch(checkpoint.load_swapper(guide, device))
        swapper = open_swapper(path, read, device)
        results = evaluate(
            swapper, held_out_faces(args.size), renderer, load_judges(device), n_pairs=args.pairs, n_resamples=200,
            n_strata=0, n_moves=0, n_probe=0 if isinstance(swapper, Editor) else args.probe, device=device,
        )  # fmt: skip
        runs_with = swapper.G if "baseline" in about else swapper
        return {"parameters": n_parameters(runs_with), "rows": results["rows"], **leaks_of(results)}

    kind = "true" if guide == "true AUs" else "predicted" if guide and guide == FIRST else "own" if guide else "plain"
    return keep(folder / f"measured-{kind}.json", made, measure)


def row(variant: str, run: Run, found: dict[str, Any], which: str = "ours") -> dict[str, Any]:
    """What was measured; no `transfer_score` where the face is lost, since it counts from the self-reconstruction."""
    one = {"variant": variant, **run._asdict(), **found["rows"][which]}
    one |= {name: found[name] if which == "ours" else NONE for name in LEAKS}
    return one | ({"transfer_score": NONE} if which == "ours" and one["identity_kept"]["value"] < 0.5 else {})


# -------------------------------------------------------------------------------------------------------- pictures


@torch.no_grad()
def gallery(shown: dict[str, Path], size: int, path: Path, device: str, n: int = 12) -> None:
    """The first n pairs of the measurement: a, b, what each method answers, the truth."""
    plan, renderer = held_out_faces(size), load_renderer(device)
    a, b = pairs_of(plan, n).T
    image_a, image_b = (render(plan, renderer, rows, device) for rows in (a, b))  # (n, 3, S, S)
    rows = {"a": image_a, "b": image_b}
    read = branch(checkpoint.load_swapper(FIRST, device))
    for name, file in shown.items():
        swapper = open_swapper(file, read, device)
        rows[name] = swapper.generate(swapper.encode(image_a)[0], swapper.encode(image_b)[1])
    pixels = {name: to_uint8(x).permute(0, 2, 3, 1).cpu().numpy() for name, x in rows.items()}  # (n, S, S, 3)
    pixels["the true answer"] = plan.render(renderer, a, au_rows=b)[0].cpu().numpy()
    figure = plots.grid(
        np.stack(list(pixels.values())), row_labels=[name.replace(", ", ",\n") for name in pixels],
        column_labels=[plots.strongest(au) for au in plan.au.numpy()[b]], cell=1.1,
        title="a with the expression of b",
        note="The first pairs of the measurement, not chosen. Editors see the AUs that an estimator reads from b.",
    )  # fmt: skip
    plots.save(figure, path, colors=256)


def noise_picture(rows: list[dict[str, Any]], path: Path) -> None:
    """How each measure changes with the share of wrong training labels."""
    import matplotlib.pyplot as plt

    with plots.style():
        figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
        for axis, measure in zip(axes, PANELS, strict=False):
            for method, color in (("ours", plots.COLORS["blue"]), ("GANimation", plots.COLORS["vermillion"])):
                mine = [r for r in rows if r["method"] == method]
                x, y = [r["noise"] for r in mine], [interval([r], measure) for r in mine]
                value, low, high = np.array(y).T
                axis.plot(x, value, "o-", color=color, label=mine[0]["variant"])
                axis.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            axis.set(title=measure, xlabel="wrong training labels (%)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        plots.save(figure, path)
        plt.close(figure)


# ------------------------------------------------------------------------------------------------------------ main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"))
    parser.add_argument("--steps", type=int, default=2400, help="of each method, after the warm-up")
    parser.add_argument("--warmup-steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=TrainConfig.batch_size)
    parser.add_argument("--critic-steps", type=int, default=1, help="published: 5, which leaves few for the generator")
    parser.add_argument("--lr", type=float, default=4e-4, help="of the baselines; published: 1e-4, for far longer")
    parser.add_argument("--width", choices=("ours", "published"), default="ours", help="of the baselines")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="the baselines; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="of the two best; the others: one")
    parser.add_argument("--seconds", action="store_true", help="the baselines again, for as long as ours took")
    parser.add_argument("--noise", type=int, nargs="*", default=[], help="wrong training labels in per cent")
    parser.add_argument("--train", nargs="+", metavar="RUN", help="train only these, such as GANimation-0-noise-30")
    parser.add_argument("--pairs", type=int, default=200, help="held-out pairs to measure")
    parser.add_argument("--probe", type=int, default=6000, help="images that the probe of f_f learns from; 0: no probe")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "compare.json")
    args = parser.parse_args()
    data = FaceData.open(args.data)
    args.size = data.size
    config = recipe(args.steps, args.warmup_steps, batch_size=args.batch_size, device=args.device)
    device = accelerator(config).device.type
    if args.train:
        every = product(("ours", *METHODS), range(args.seeds), (0, *args.noise), (False, True))
        known = {run.name: run for run in (Run(*values) for values in every)}
        if unknown := set(args.train) - set(known):
            parser.error(f"--train {' '.join(sorted(unknown))}: expected names out of {', '.join(known)}")
        for name in args.train:
            trained(known[name], data, config, args)
        return

    def rows_of(run: Run, path: Path) -> list[dict[str, Any]]:
        if run.method in ("ours", "DRIT"):
            return [row(run.method, run, measured(path, "", path.parent, args, device))]
        guides: dict[str, Path | str] = {"predicted AUs": FIRST, "true AUs": "true AUs"}
        return [row(f"{run.method}, {k}", run, measured(path, g, path.parent, args, device)) for k, g in guides.items()]

    runs = {run: trained(run, data, config, args) for run in map(Run, ("ours", *args.methods))}
    rows = [one for run, path in runs.items() for one in rows_of(run, path)]
    real = [one for one in rows if "true AUs" not in one["variant"]]
    best = sorted(real, key=lambda one: -(one["transfer_score"]["value"] or -np.inf))[:2]
    for run in [Run(one["method"], seed) for one in best for seed in range(1, args.seeds)]:
        runs[run] = trained(run, data, config, args)
        rows += rows_of(run, runs[run])
    timed_rows: list[dict[str, Any]] = []
    for run in [Run(method, timed=True) for method in args.methods] if args.seconds else []:
        runs[run] = trained(run, data, config, args)
        timed_rows += rows_of(run, runs[run])
    ours = measured(runs[Run("ours")], "", args.runs / "ours-0", args, device)
    shown = {one["variant"].split(",")[0]: runs[Run(one["method"])] for one in real if one["seed"] == 0}
    if data.size == checkpoint.load(FIRST)[1]["size"]:
        found = measured(FIRST, "", args.runs / "shipped", args, device)
        rows.insert(1, row("ours, shipped weights", Run("ours"), found))
        shown = {"ours": shown.pop("ours"), "ours, shipped weights": FIRST, **shown}
    rows += [row(name, Run(name), ours, name) for name in TRIVIAL]
    noise_rows: list[dict[str, Any]] = []
    for noise in args.noise:
        own, edits = (trained(Run(method, noise=noise), data, config, args) for method in ("ours", "GANimation"))
        found = measured(own, "", own.parent, args, device), measured(edits, own, edits.parent, args, device)
        noise_rows.append(row("ours", Run("ours", noise=noise), found[0]))
        noise_rows.append(row("GANimation, AUs predicted by ours", Run("GANimation", noise=noise), found[1]))

    had = []
    for run, path in runs.items():
        about, is_ours = checkpoint.load(path)[1], run.method == "ours"
        one = measured(path, "" if run.method in ("ours", "DRIT") else FIRST, path.parent, args, device)
        had.append({
            "run": run.name, "parameters": one["parameters"],
            "images": 2 * args.batch_size * (args.steps if is_ours else about["step"]),
            "generator_steps": args.steps if is_ours else about["step"] // args.critic_steps,
        })  # fmt: skip
    about = {name: value for name, value in vars(args).items() if name not in ("runs", "out", "data")}
    about |= {"data": args.data.name, "device": device, "subjects": len(np.unique(data.subject))}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_results(args.out, {"about": about, "rows": rows, "timed": timed_rows, "noise": noise_rows, "had": had})
    text = report(args, rows, timed_rows, noise_rows, had)
    args.out.with_suffix(".md").write_text(text, encoding="utf-8")
    picture(
        [one for one in rows if one["variant"] not in TRIVIAL[:2]],
        names_of(rows, TRIVIAL[:2]),
        PANELS,
        args.out.with_suffix(".png"),
    )
    gallery(shown, data.size, args.out.with_name(f"{args.out.stem}-gallery.png"), device)
    if noise_rows:
        noise_picture(noise_rows, args.out.with_name(f"{args.out.stem}-noise.png"))
    print(f"{text}\nwritten: {args.out}")


def names_of(rows: list[dict[str, Any]], without: tuple[str, ...] = ()) -> list[str]:
    return [name for name in dict.fromkeys(one["variant"] for one in rows) if name not in without]


def report(args: argparse.Namespace, rows: Any, timed_rows: Any, noise_rows: Any, had: Any) -> str:
    """The Markdown beside the JSON."""
    columns = (*(name for name in MEASURES if name in rows[0]), *LEAKS)  # older results lack the newer measures
    stem, images = args.out.stem, had[0]["images"]
    parts = [
        f"# The same {images:,} images", table(rows, names_of(rows), columns),
        f"{args.pairs} held-out pairs in both directions, {args.size} px. In brackets the range over seeds where there "
        "are several, else the 95 % interval over people. An editor has no f_f to probe: it is given the whole image. "
        "A `transfer_score` counts from a method's own self-reconstruction: one that loses the face of a has none.",
        f"![Each measure of each method]({stem}.png)", f"![The same pairs, all methods]({stem}-gallery.png)",
    ]  # fmt: skip
    if timed_rows:
        parts += ["# The same time", table(timed_rows, names_of(timed_rows), columns)]
    if noise_rows:
        levels = [{**one, "variant": f"{one['variant']}, {one['noise']} % wrong"} for one in noise_rows]
        levels.sort(key=lambda one: one["method"] != "ours")
        parts += ["# Wrong training labels", table(levels, names_of(levels), PANELS), f"![Noise]({stem}-noise.png)"]
    lines = ["| run | parameters | images | generator steps |", "|---|---:|---:|---:|"]
    lines += ["| " + " | ".join(f"{x:,}" if isinstance(x, int) else str(x) for x in one.values()) + " |" for one in had]
    parts += ["# What each had", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
