"""Is f_f free of the expression? One probe on the pixels, on an untrained encoder, and on f_f of both generations.

    python tools/claims.py     # half an hour on two cores -> benchmarks/results/claims.json and .md

The probe is that of `leak_au`: a new network, fitted to images of other people. A value of 0.5 says that it reads
nothing. The pixels certainly contain the expression, so what it reads there is the mark to compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from expr_lib import FIRST
from expr_lib.apps.held_out import held_out_faces
from expr_lib.faces.plan import FacesConfig, plan_faces
from expr_lib.faces.render import load_renderer
from expr_lib.measure.evaluate import write_results
from expr_lib.measure.metrics import balanced_accuracy
from expr_lib.measure.probes import PROBE_SEED, probe_au, render
from expr_lib.model import Swapper
from expr_lib.moving import as_map
from expr_lib.swap import load

SIZE = 64


def features() -> dict[str, Callable[[Tensor], Tensor]]:
    """{row of the table: images (B, 3, S, S) -> maps (B, C, H, W)}."""
    first, second = load(FIRST), load()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = {"first": Swapper(first.config).eval(), "second": Swapper(second.config).eval()}

    def f_f(swapper: Swapper) -> Callable[[Tensor], Tensor]:
        return lambda image: as_map(swapper.encode(image)[0])

    def rest(image: Tensor) -> Tensor:
        face = second.rest(second.encode(image)[0])
        assert face is not None
        return face

    return {
        "the pixels": lambda image: image,
        "f_f of an untrained network, first generation": f_f(untrained["first"]),
        "f_f of the first generation": f_f(first),
        "f_f of an untrained network, second generation": f_f(untrained["second"]),
        "f_f of the second generation": f_f(second),
        "... its face at rest alone": rest,
    }


@torch.inference_mode()
def main(out: Path = Path("benchmarks/results/claims.json"), n_probe: int = 6000, seeds: int = 3) -> None:
    """Write the table.

    Args:
        out: JSON file; beside it the table as Markdown.
        n_probe: images to which each probe is fitted.
        seeds: how many probes are fitted for each row.
    """
    renderer, test = load_renderer(), held_out_faces(SIZE)
    fitted = plan_faces(FacesConfig(n_probe // 10, 10, size=SIZE, seed=PROBE_SEED, val=0.0, test=0.0))
    images = []
    for plan in (fitted, test):
        chunks = np.array_split(np.arange(len(plan)), -(-len(plan) // 32))
        images.append(torch.cat([render(plan, renderer, rows, "cpu").half() for rows in tqdm(chunks, "rendering")]))
    found: dict[str, list[float]] = {}
    for name, feature in features().items():
        maps = [torch.cat([feature(x.float()).half() for x in part.split(32)]) for part in images]
        found[name] = []
        for seed in range(seeds):
            with torch.inference_mode(False):
                read = probe_au(maps[0].clone(), fitted.au, maps[1].clone(), seed=seed)
            found[name].append(float(balanced_accuracy(read, test.au).nanmean()))
        print(name, found[name], flush=True)
    write_results(out, {"leak_au": found, "n_fitted": len(fitted), "n_images": len(test)})
    out.with_suffix(".md").write_text(table(found, len(fitted), len(test)), encoding="utf-8")


def table(found: dict[str, list[float]], n_fitted: int, n_images: int) -> str:
    """The Markdown table of {row: values of several probes}."""
    lines = ["| a new network reads a's action units from | balanced accuracy | range over probes |", "|---|---|---|"]
    lines += [
        f"| {row.replace('f_f', '`f_f`')} | {np.mean(x):.2f} | {min(x):.2f} to {max(x):.2f} |"
        for row, x in found.items()
    ]
    note = f"Fitted to {n_fitted} images, tested on {n_images} images of other people; 0.5 is chance."
    return "\n".join([*lines, "", f"{note} Made by `python tools/claims.py`.", ""])


if __name__ == "__main__":
    tyro.cli(main)
