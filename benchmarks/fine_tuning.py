"""Does fine-tuning on films without labels adapt to another world? The gain there before and after.

    python benchmarks/fine_tuning.py     # twenty minutes of a core; if interrupted, it goes on where it stopped

The other world has the same heads and muscles, but other materials: skin and lips of any colour, hair of any, hard
light without a sky, and paint in a few flat tones instead of smooth shading. Forty people of it are filmed, twelve
frames each, without a label. Those films are imported and the shipped weights for 64 pixels are fine-tuned on them by

    expr-lib import unlabelled FILMS DATA
    expr-lib train DATA --start-from expr_lib/weights/moved-64.safetensors --steps 300 --take-lr 8e-4

and swaps between other people of both worlds are compared with the true answer: `gain` is the share of the error of the
unchanged input that they remove. The rows of the old world say what is forgotten there. Writes
benchmarks/results/fine-tuning.json, .md and .png.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import gains
from faces import machine
from torch import Tensor

from expr_lib import WEIGHTS
from expr_lib.apps.held_out import HELD_OUT_SEED
from expr_lib.datasets import FaceData, to_uint8
from expr_lib.faces.head import HeadModel
from expr_lib.faces.plan import FacePlan, FacesConfig, plan_faces
from expr_lib.faces.render import Renderer
from expr_lib.faces.sample import generator
from expr_lib.images import write_png
from expr_lib.importers.write import ImportConfig, import_faces
from expr_lib.measure.evaluate import write_results
from expr_lib.step import TrainConfig
from expr_lib.swap import load
from expr_lib.train import train

SIZE, PEOPLE, FRAMES, SEED = 64, 40, 12, 71
TONES = 5
"""Steps of brightness in the other world."""
START = WEIGHTS / "moved-64.safetensors"
RESULTS = Path(__file__).parent / "results"


class Painted(Renderer):
    """The renderer of the other world, in which every colour channel has a few flat tones."""

    def shade(self, *args: Any) -> tuple[Tensor, Tensor]:
        color, face = super().shade(*args)  # (3, M) sRGB
        bright = color.amax(0, keepdim=True)
        flat = ((bright * TONES).floor() + 0.5) / TONES
        return (color * flat / bright).clamp(0, 1), face


def other_world(plan: FacePlan) -> FacePlan:
    """The same people and expressions in other materials and light."""
    g, n = generator(SEED), len(plan.subjects.skin)

    def any_colour(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 3, generator=g)

    skin = any_colour(0.35, 0.95)
    subjects = replace(
        plan.subjects, skin=skin, lips=0.6 * skin + 0.3 * any_colour(0, 1), hair=any_colour(0.05, 0.95),
        brow=any_colour(0.02, 0.4), iris=any_colour(0.1, 0.9), shine=torch.full((n,), 2.0),
        freckles=torch.zeros(n), beard=torch.zeros(n), creases=torch.ones(n),
    )  # fmt: skip
    views = replace(plan.views, light_color=1.3 * plan.views.light_color, ambient=0.5 * plan.views.ambient)
    return replace(plan, subjects=subjects, views=views)


def film(folder: Path, renderer: Renderer) -> None:
    """The frames of one film for each person, as folders of images."""
    plan = other_world(plan_faces(FacesConfig(PEOPLE, FRAMES, SIZE, seed=SEED, images_per_take=FRAMES)))
    images = plan.render(renderer, torch.arange(len(plan)))[0].numpy()
    for row, image in enumerate(images):
        write_png(folder / f"{row // FRAMES:02d}" / f"{row % FRAMES:04d}.png", image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--runs", type=Path, default=RESULTS.parents[1] / "runs/fine-tuning", help="goes on from here")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    ours, painted = Renderer(HeadModel()).eval(), Painted(HeadModel()).eval()
    plan = plan_faces(FacesConfig(50, 4, SIZE, seed=HELD_OUT_SEED, val=0.0, test=1.0))
    worlds = {"the other world": (other_world(plan), painted), "the old world": (plan, ours)}
    data, run = options.runs / "data", options.runs / "run"
    if not (data / "meta.json").exists():
        film(options.runs / "films", painted)
        settings = ImportConfig(size=SIZE, val=0.1, test=0.0, processes=1)
        import_faces("unlabelled", options.runs / "films", data, settings)
    config = TrainConfig(steps=options.steps, take_lr=8e-4, save_every=20, device="cpu")
    tuned = train(config, FaceData.open(data), run, START)
    rows, shown = {}, {}
    for name, checkpoint in (("before", START), ("after", tuned)):
        for world, (people, renderer) in worlds.items():
            rows[f"{name}, {world}"], shown[name, world] = gains(load(checkpoint), people, renderer, options.pairs)
    results = {
        "command": "python benchmarks/fine_tuning.py", "machine": machine(), "people": PEOPLE, "frames": FRAMES,
        "steps": options.steps, "pairs": options.pairs, "rows": rows,
    }  # fmt: skip
    write_results(options.out / "fine-tuning.json", results)
    world = "the other world"
    images, others, before, truth = shown["before", world]
    grid = torch.stack([images, others, before, shown["after", world][2], truth])[:, :8]  # (5, 8, S, S, 3)
    picture = to_uint8(grid).transpose(1, 2).reshape(5 * SIZE, -1, 3)
    write_png(options.out / "fine-tuning.png", picture.numpy())
    text = markdown(results)
    (options.out / "fine-tuning.md").write_text(text)
    print(text)


def markdown(results: dict[str, Any]) -> str:
    lines = ["| weights, faces | `gain` ↑ 1 | `nearer` ↑ 1 |", "|---|---:|---:|"]
    for name, row in results["rows"].items():
        cells = (f"{x['value']:.2f} ({x['low']:.2f} – {x['high']:.2f})" for x in (row["gain"], row["nearer"]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    films = f"{results['people']} films of {results['frames']} frames without a label"
    lines += [
        "", f"{films}, {results['steps']} steps; "
        f"{results['pairs']} swaps between people that no training saw, 64 px, 95 % intervals over people.",
        "", "![a, b, a with the expression of b before and after fine-tuning, the true answer](fine-tuning.png)",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
