"""What should tell the generator which expression to put on? Everything else is equal, so only the guidance differs.

    python benchmarks/guidance.py runs/faces-64                # started again, it continues where it stopped
    python benchmarks/guidance.py runs/faces-64 --train "f_r 1" "true AUs 0"     # only these; several at once

All cells have the encoder and the AU branch of the shipped weights, frozen, and train a new generator for `--steps`
steps inside takes, on the same batches, with the same losses, optimizer and noise. They differ in what takes the place
of f_r:

- `f_r`              the paper's explicit representation, d numbers for each AU
- `f_r, learned`     the same, but the AU branch goes on learning, from the labels and from the error of the pixels
- `predicted AUs`    the intensities that the AU branch reads from f_r, one number for each AU
- `true AUs`         the intensities with which b was rendered
- `landmarks`        68 points of b's head in a frontal view, as rendered
- `landmark motion`  the same points less those of b at rest
- `class`            one of eight expression classes, chosen from the true AUs

An image is matched with what is known about it by its pixels (`Facts`); only rendered images are known. "10 % wrong"
means that each predicted intensity is replaced by that of another image with probability 0.1, in training and in the
measurement. "coarse" and "fine" measure the same networks on held-out faces that show only the AUs of one half
(`HALVES`).

Writes benchmarks/results/guidance.json, .md, .png, -curves.png and -gallery.png (or `--out`).
"""

import argparse
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import METHODS, BaselineConfig, branch, like_ours, open_editor, train_editor
from common import GROUPS, gains, keep, picture, recipe, table, write_encoder
from guides import GUIDES, Facts, Remembered, built_of, editing, guided

from expr_lib import WEIGHTS, checkpoint, model
from expr_lib.apps.held_out import held_out_faces
from expr_lib.datasets import FaceData, to_float, to_uint8
from expr_lib.faces.plan import FacePlan, FacesConfig, plan_faces
from expr_lib.faces.render import load_renderer
from expr_lib.facs import AU_NAMES
from expr_lib.measure import plots
from expr_lib.measure.evaluate import evaluate, pairs_of, write_results
from expr_lib.measure.judges import load_judges
from expr_lib.measure.metrics import icc31
from expr_lib.model import MovingDG
from expr_lib.step import TakeWeights, TrainConfig
from expr_lib.train import train

HALVES = {
    "coarse": ("AU1", "AU2", "AU4", "AU5", "AU12", "AU25", "AU26", "AU43"),
    "fine": ("AU6", "AU7", "AU9", "AU10", "AU14", "AU15", "AU17", "AU20", "AU23"),
}
"""AUs that open, close or lift a feature of the face, and AUs that tighten, press or wrinkle it. Our choice."""
SHOWN = ("gain", "gain_coarse", "gain_fine", "nearer", "au_icc", "own_expression_left", "rest_left", "ssim")

# ------------------------------------------------------------------------------------------------------------ cells


@dataclass(frozen=True)
class Cell:
    """One kind of training."""

    guide: str  # one of GUIDES
    generator: str = "moved"  # or "drawn", or the editor of METHODS in its place
    own_losses: bool = False  # of an editor: trained unpaired with the losses of its paper, not inside takes
    seeds: int = 1

    @property
    def name(self) -> str:
        if self.generator in METHODS:
            return f"{self.generator}, {'its own losses' if self.own_losses else 'take loss'}"
        return self.guide if self.generator == "moved" else f"{self.guide}, {self.generator}"


CELLS = (
    Cell("f_r", seeds=3),
    Cell("f_r, learned", seeds=3),
    Cell("predicted AUs", seeds=3),
    Cell("true AUs", seeds=3),
    Cell("predicted AUs, 10 % wrong"),
    Cell("predicted AUs, 30 % wrong"),
    Cell("landmarks"),
    Cell("landmark motion"),
    Cell("class"),
    Cell("f_r", "drawn"),
    *(Cell("predicted AUs", name, own) for name in METHODS for own in (False, True)),
)


def parts_of(cell: Cell, facts: Facts | None) -> dict[str, type]:
    if cell.generator in METHODS:
        return {"MovingDG": editing(cell.generator)}
    base, name = (model.DG, "DG") if cell.generator == "drawn" else (MovingDG, "MovingDG")
    return {name: guided(base, cell.guide, facts)}


@cache
def facts_of(folder: Path) -> Facts:
    """The facts of all images of a data folder of rendered faces."""
    data, facts = FaceData.open(folder), Facts(load_renderer().head)
    config = FacesConfig(**data.meta["config"])
    plan = plan_faces(config)
    for rows in np.array_split(np.arange(len(data)), -(-len(data) // 256)):
        identity = plan.subjects.identity[plan.subject[rows]]
        facts.add(data.pixels(rows), identity, plan.au[rows])
    return facts


def path_of(cell: Cell, seed: int, args: argparse.Namespace) -> Path:
    """The checkpoint of a cell."""
    name = f"{cell.name} {seed}".replace(" ", "-").replace(",", "").replace("%", "percent")
    return args.runs / name / "checkpoint.safetensors"


def finished(cell: Cell, seed: int, args: argparse.Namespace) -> bool:
    last = checkpoint.load_last(path_of(cell, seed, args))
    return last is not None and last[1]["step"] >= args.steps


def trained(cell: Cell, seed: int, folder: Path, args: argparse.Namespace) -> Path:
    """Train a cell, or continue its run -> its checkpoint."""
    data, start = FaceData.open(folder), args.runs / "encoder.safetensors"
    if not start.exists():
        write_encoder(args.encoder, start)
    run = path_of(cell, seed, args).parent
    print(f"{cell.name}, seed {seed}: {run}", flush=True)
    config = replace(
        recipe(args.steps, 0, batch_size=args.batch_size, supervision="takes", seed=seed),
        generator="drawn" if cell.generator == "drawn" else "moved",
        # pixels alone, so that no loss prefers a guide; a branch that learns must go on reading AUs
        take_weights=TakeWeights(au=TakeWeights.au if GUIDES[cell.guide].learned else 0.0, guide=0.0),
        detach_f_r=False, take_lr=8e-4, sample_every=max(1, args.steps // 6),
    )  # fmt: skip
    if cell.own_losses:
        c = BaselineConfig(size=data.size, n_aus=len(data.au_names), critic_steps=1, lr=4e-4)
        return train_editor(cell.generator, like_ours(cell.generator, c), data, config, run, start)
    facts = facts_of(folder) if GUIDES[cell.guide].facts else None
    with built_of(**parts_of(cell, facts)):
        return train(config, data, run, start)


def open_cell(cell: Cell, path: Path, args: argparse.Namespace, facts: Facts) -> Any:
    """The trained swapper or editor of a cell; an editor with its own losses reads AUs by the shared AU branch."""
    if cell.own_losses:
        return open_editor(path, branch(checkpoint.load_swapper(args.runs / "encoder.safetensors")))
    with built_of(**parts_of(cell, facts)):
        return checkpoint.load_swapper(path)


# -------------------------------------------------------------------------------------------------------- measuring


def gain_on(group: tuple[str, ...], swapper: Any, plan: FacePlan, renderer: Any, n_pairs: int) -> dict[str, Any]:
    """The gain on the held-out pairs if all faces show only the AUs of this group, with a 95 % interval over people."""
    only = torch.tensor([name in group for name in AU_NAMES])
    return gains(swapper, replace(plan, au=plan.au * only), renderer, n_pairs)[0]["gain"]


def curve_of(path: Path) -> list[tuple[int, float]]:
    """Steps and the gain inside takes of people not trained on; none for an editor with its own losses."""
    if not (log := path.with_name("log.csv")).exists():
        return []
    rows = np.genfromtxt(log, delimiter=",", names=True)
    return [(int(row["step"]), float(row["gain"])) for row in rows if not np.isnan(row["gain"])]


def measured(cell: Cell, seed: int, path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What `evaluate` finds, and the gain on both groups of AUs; kept beside the checkpoint."""

    def measure() -> dict[str, Any]:
        facts = Facts(load_renderer().head)
        renderer: Any = Remembered(load_renderer(), facts) if GUIDES[cell.guide].facts else load_renderer()
        plan, swapper = held_out_faces(64), open_cell(cell, path, args, facts)
        results = evaluate(
            swapper, plan, renderer, load_judges(), n_pairs=args.pairs, n_resamples=200, n_strata=0, n_probe=0,
            n_moves=0,
        )  # fmt: skip
        groups = {f"gain_{name}": gain_on(group, swapper, plan, renderer, args.pairs) for name, group in HALVES.items()}
        trivial = {name: row for name, row in results["rows"].items() if name != "ours"}
        about = {"per_au": results["per_au"]["ours"], "curve": curve_of(path), "trivial": trivial}
        return {**results["rows"]["ours"], **groups, **about}

    torch.manual_seed(seed)  # of wrong labels
    made = {"checkpoint": checkpoint.load(path)[1]["sha256"], "pairs": args.pairs}
    found = keep(path.with_name("measured.json"), made, measure)
    return {"variant": cell.name, "seed": seed, **found}


@torch.no_grad()
def estimator_quality(path: Path) -> dict[str, float]:
    """How well the AU branch reads held-out faces: mean ICC(3,1) and mean absolute error."""
    plan, renderer, swapper = held_out_faces(64), load_renderer(), checkpoint.load_swapper(path)
    rows = np.arange(0, len(plan), 2)
    pixels = torch.cat([plan.render(renderer, part)[0] for part in np.array_split(rows, 16)])
    read = torch.cat(
        [swapper.intensities(swapper.read_au(to_float(x).permute(0, 3, 1, 2))[0]) for x in pixels.split(64)]
    )
    au = plan.au[rows]
    return {"au_icc": icc31(read.double(), au.double()).nanmean().item(), "error": (read - au).abs().mean().item()}


@torch.no_grad()
def gallery(shown: dict[str, tuple[Cell, Path]], path: Path, args: argparse.Namespace, n: int = 12) -> None:
    """The first n pairs of the measurement: a, b, the answer of each cell, the truth."""
    facts = Facts(load_renderer().head)
    plan, renderer = held_out_faces(64), Remembered(load_renderer(), facts)
    a, b = pairs_of(plan, n).T
    pixels = {"a": plan.render(renderer, a)[0].numpy(), "b": plan.render(renderer, b)[0].numpy()}
    image_a, image_b = (to_float(torch.from_numpy(pixels[x])).permute(0, 3, 1, 2) for x in "ab")
    for name, (cell, file) in shown.items():
        swapper = open_cell(cell, file, args, facts)
        answer = swapper.generate(swapper.encode(image_a)[0], swapper.encode(image_b)[1])
        pixels[name] = to_uint8(answer).permute(0, 2, 3, 1).numpy()
    pixels["the true answer"] = plan.render(renderer, a, au_rows=b)[0].numpy()
    figure = plots.grid(
        np.stack(list(pixels.values())), row_labels=[name.replace(", ", ",\n") for name in pixels],
        column_labels=[plots.strongest(au) for au in plan.au.numpy()[b]], cell=1.1,
        title="a with the expression of b", note="The first pairs of the measurement, not chosen.",
    )  # fmt: skip
    plots.save(figure, path, colors=256)


def curves(rows: list[dict[str, Any]], path: Path) -> None:
    """The gain inside takes during training: one line for each cell and seed that was trained inside takes."""
    import matplotlib.pyplot as plt

    moved = {cell.name for cell in CELLS if cell.generator == "moved"}
    rows = [row for row in rows if row["curve"]]
    dashes = {cell.name: "-" if cell.seeds > 1 else "--" for cell in CELLS}  # more cells than colours
    panels = {
        "One generator, different guidance": [row for row in rows if row["variant"] in moved],
        "Other generators": [row for row in rows if row["variant"] not in moved - {CELLS[0].name}],
    }
    with plots.style():
        figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
        for axis, (title, shown) in zip(axes, panels.items(), strict=True):
            color: dict[str, Any] = {}
            for row in shown:
                name = row["variant"]
                style = {"color": color[name]} if name in color else {"label": name}
                (line,) = axis.plot(*np.transpose(row["curve"]), dashes[name], **style)
                color.setdefault(name, line.get_color())
            axis.axhline(0, color=plots.INK, linewidth=1, linestyle=":")
            axis.set(title=title, xlabel="step", ylabel="gain inside takes")
            if any(gain < -1 for row in shown for _, gain in row["curve"]):
                axis.set_yscale("symlog", linthresh=0.5)  # a generator that has not learned to draw is far below
            axis.legend(fontsize=10)
        plots.save(figure, path)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder of `expr-lib faces` with takes, 64 px")
    parser.add_argument("--runs", type=Path, default=Path("runs/guidance"))
    parser.add_argument("--steps", type=int, default=1000, help="of each cell")
    parser.add_argument("--encoder", type=Path, default=WEIGHTS / "moved-64.safetensors", help="whose E is frozen")
    parser.add_argument("--batch-size", type=int, default=TrainConfig.batch_size)
    parser.add_argument("--pairs", type=int, default=100, help="held-out pairs to measure")
    parser.add_argument("--finished", action="store_true", help="train nothing; measure the cells that are trained")
    parser.add_argument("--train", nargs="+", metavar="CELL", help='train only these, such as "true AUs 0"')
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "guidance.json")
    args = parser.parse_args()
    every = [(cell, seed) for cell in CELLS for seed in range(cell.seeds)]
    if args.train:
        if unknown := set(args.train) - {f"{cell.name} {seed}" for cell, seed in every}:
            parser.error(
                f"--train {'; '.join(sorted(unknown))}: expected {'; '.join(f'{c.name} {s}' for c, s in every)}"
            )
        for cell, seed in every:
            if f"{cell.name} {seed}" in args.train:
                trained(cell, seed, args.data, args)
        return
    if args.finished:
        paths = {one: path_of(*one, args) for one in every if finished(*one, args)}
    else:
        paths = {one: trained(*one, args.data, args) for one in every}
    rows = [measured(cell, seed, path, args) for (cell, seed), path in paths.items()]
    quality = estimator_quality(args.encoder)
    report(args, rows, quality)
    gallery(
        {cell.name: (cell, path) for (cell, seed), path in paths.items() if seed == 0},
        args.out.with_name(f"{args.out.stem}-gallery.png"),
        args,
    )


TRIVIAL = ("copy-input", "render of what is read", "true render")


def report(args: argparse.Namespace, rows: list[dict[str, Any]], quality: dict[str, float]) -> None:
    """Write the results as JSON, Markdown and a figure."""
    nothing = {"value": None, "low": None, "high": None}
    trivial = [{"variant": x, "seed": 0, **dict.fromkeys(GROUPS, nothing), **rows[0]["trivial"][x]} for x in TRIVIAL]
    about = {"data": args.data.name, "encoder": args.encoder.name, "steps": args.steps, "batch_size": args.batch_size,
             "pairs": args.pairs}  # fmt: skip
    kept = [{k: v for k, v in row.items() if k not in ("trivial", "made")} for row in rows + trivial]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_results(args.out, {"about": about, "estimator": quality, "rows": kept})
    text = text_of({"about": about, "estimator": quality, "rows": kept})
    args.out.with_suffix(".md").write_text(text, encoding="utf-8")
    near = [row for row in rows if row["gain"]["value"] > -0.5]  # others would leave no room for the differences
    picture(near, list(dict.fromkeys(row["variant"] for row in near)), (*SHOWN[:3], "au_icc"),
            args.out.with_suffix(".png"))  # fmt: skip
    curves(rows, args.out.with_name(f"{args.out.stem}-curves.png"))
    print(f"{text}\nwritten: {args.out}")


def short_table(rows: list[dict[str, Any]]) -> str:
    """The table of benchmarks/README.md: the gain of every seed, on all faces and on both groups of AUs."""
    lines = ["| | `gain` | only coarse expressions | only fine ones |", "|---|---|---|---|"]
    for name in dict.fromkeys(row["variant"] for row in rows if row["variant"] not in TRIVIAL):
        mine = [row for row in rows if row["variant"] == name]
        cells = [", ".join(f"{row[measure]['value']:.3f}" for row in mine) for measure in SHOWN[:3]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def first_steps(rows: list[dict[str, Any]], level: float) -> str:
    """After how many steps each cell first had this gain inside takes; one number for each seed."""
    found: dict[str, list[str]] = {}
    for row in (row for row in rows if row.get("curve")):
        step = next((step for step, value in row["curve"] if value >= level), None)
        found.setdefault(row["variant"], []).append("never" if step is None else str(step))
    return "; ".join(f"{name} {', '.join(steps)}" for name, steps in found.items())


def text_of(results: dict[str, Any]) -> str:
    """The Markdown beside the result file."""
    about, quality, rows = results["about"], results["estimator"], results["rows"]
    steps = [f"* {level:g} after {first_steps(rows, level)}.\n" for level in (0.1, 0.2)]
    return (
        f"{table(rows, list(dict.fromkeys(row['variant'] for row in rows)), SHOWN)}\n\n{about['steps']} steps of "
        f"{about['batch_size']} pairs for each cell, encoder of {about['encoder']}, {about['pairs']} held-out pairs in "
        "both directions, 64 px. In brackets the range over seeds if there are several, else the 95 % interval over "
        "people. `gain_coarse` and `gain_fine`: on the same people, who then show only "
        f"{', '.join(HALVES['coarse'])}, or only {', '.join(HALVES['fine'])}. The AU branch reads held-out faces with "
        f"a mean ICC of {quality['au_icc']:.2f} and a mean absolute error of {quality['error']:.2f}.\n\n"
        "The gain inside takes of people who are not trained on, measured six times during training, was first at "
        f"least\n\n{''.join(steps)}"
    )


if __name__ == "__main__":
    main()
