"""Render the film for notebooks/figures/animate.gif, of a person who smiles, is surprised, gets angry and rests.

    python tools/driving_film.py build/film       # driving.mp4, and still.png: another person, at rest
    expr-lib animate build/film/still.png build/film/driving.mp4 --inputs -o notebooks/figures/animate.gif

`make film` runs both commands. Both people are held out.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import torch
from tqdm import tqdm

from expr_lib.apps.held_out import held_out_faces
from expr_lib.faces.build import SAMPLE_EXPRESSIONS
from expr_lib.faces.render import load_renderer
from expr_lib.facs import AU_NAMES, MAX_INTENSITY
from expr_lib.films import write_film
from expr_lib.images import write_png

SIZE, RATE = 256, 20
SCENES = ("neutral", "joy", "neutral", "surprise", "anger", "neutral")
ACTOR, STILL = 68, 2
"""Two of the held-out people, almost frontal and without hair before the face."""


def expressions() -> torch.Tensor:
    """(N, 17) intensities in [0, 5]: 8 frames to change smoothly to each scene, which lasts 9; with three blinks."""
    table = torch.tensor([[SAMPLE_EXPRESSIONS[scene].get(name, 0.0) for name in AU_NAMES] for scene in SCENES])
    t = torch.linspace(0, 1, 8)[:, None]
    ease = t * t * (3 - 2 * t)
    parts = [table[:1].repeat(6, 1)]
    for before, after in pairwise(table):
        parts += [before + (after - before) * ease, after.repeat(9, 1)]
    au = torch.cat(parts)
    lid, opened = AU_NAMES.index("AU43"), AU_NAMES.index("AU5")
    for start in (2, 36, 82):
        for k, share in enumerate((0.6, 1.0, 0.8, 0.3)):
            au[start + k, lid], au[start + k, opened] = MAX_INTENSITY * share, 0.0
    return au


@torch.inference_mode()
def main(folder: Path) -> None:
    renderer, plan, au = load_renderer(), held_out_faces(SIZE), expressions()
    n, per = len(au), len(plan) // 100
    rows = torch.full((n,), ACTOR * per)
    film = replace(plan, subject=plan.subject[rows], au=au, views=plan.views[rows], take=torch.zeros(n).long())
    portions = tqdm(torch.arange(n).split(8), "rendering")
    images = (image for rows in portions for image in film.render(renderer, rows)[0].numpy())
    write_film(folder / "driving.mp4", images, Fraction(RATE))
    still = replace(plan, au=torch.zeros_like(plan.au))
    write_png(folder / "still.png", still.render(renderer, [STILL * per])[0][0].numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
