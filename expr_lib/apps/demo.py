"""`expr-lib demo`: swap faces that training never saw, and compare the swaps with the true answers."""

import time
from pathlib import Path

from expr_lib import SHIPPED
from expr_lib.apps.held_out import HELD_OUT_SEED, held_out_faces, measured_size, unmet_judges
from expr_lib.apps.options import Checkpoint, Output, count, may_write

SHOWN_SIZE = 256
"""Side in pixels of the images of a moving generator in the figure."""


def demo(out: Output = Path("build/demo"), pairs: int = 48, checkpoint: Checkpoint = SHIPPED) -> None:
    """Swap the expressions of faces that training never saw, and compare the swaps with the true answers.

    Args:
        out: folder for swap.png and metrics.json.
        pairs: number of pairs to measure; the first eight are in the picture.
        checkpoint: weights of the swapper (.safetensors).
    """
    began, pairs = time.perf_counter(), count("--pairs", pairs, 8, 100_000)
    may_write("--out", out, folder=True)
    import matplotlib

    matplotlib.use("Agg")
    from dataclasses import replace

    import numpy as np

    from expr_lib.faces.render import load_renderer
    from expr_lib.measure import plots
    from expr_lib.measure.evaluate import evaluate, write_results
    from expr_lib.swap import load, rest_images, swap_images

    swapper, renderer = load(checkpoint), load_renderer()
    judges = unmet_judges(checkpoint.name, swapper.metadata)
    plan = held_out_faces(measured_size(swapper.config))
    results = evaluate(
        swapper, plan, renderer, judges, n_pairs=pairs, n_resamples=200,
        n_strata=0, n_probe=0, n_moves=0,
        about={"checkpoint": checkpoint.name, "seed_of_people": HELD_OUT_SEED, "command": "expr-lib demo"},
    )  # fmt: skip
    shown = results["swaps"][:8]  # the first of the seeded list, not the best
    a, b = np.array([(swap["a"], swap["b"]) for swap in shown]).T
    closer = replace(plan, size=SHOWN_SIZE) if swapper.config.generator == "moved" else plan
    (image_a, _), (image_b, _) = closer.render(renderer, a), closer.render(renderer, b)
    truth, _ = closer.render(renderer, a, au_rows=b)
    swapped, _ = swap_images(swapper, image_a, image_b)
    out.mkdir(parents=True, exist_ok=True)
    figure = plots.swaps(image_a, image_b, swapped, truth, plan.au[b], rest_images(swapper, image_a))
    picture = plots.save(figure, out / "swap.png")
    shown_rows = ("ours", "copy-input", "true render")
    numbers = {key: results[key] for key in ("n_pairs", "n_subjects", "split", "size", "generator", "about", "seed")}
    numbers |= {"rows": {row: results["rows"][row] for row in shown_rows}}
    write_results(out / "metrics.json", numbers)

    print(f"\n{'':16}{'ours':>22}{'copy-input':>14}{'true render':>14}")
    for measure in ("gain", "nearer", "transfer_score", "au_icc", "identity_kept"):
        ours, copy, true = (results["rows"][row][measure] for row in shown_rows)
        value = f"{ours['value']:.2f} ({ours['low']:.2f} to {ours['high']:.2f})"
        print(f"{measure:16}{value:>22}{copy['value']:>14.2f}{true['value']:>14.2f}")
    print(f"\n{2 * pairs} swaps of held-out people. copy-input: the unchanged input; true render: the true answer.")
    print(f"picture   {picture}\nnumbers   {out / 'metrics.json'}\n{time.perf_counter() - began:.0f} s")
