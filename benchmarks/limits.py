"""Which part of a swap makes the error? Each part in turn is replaced by what it should have given, or left out.

    python benchmarks/limits.py                # the shipped weights; another checkpoint as an argument

Writes benchmarks/results/limits.json and .md (or `--out`).
"""

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from expr_lib import SHIPPED
from expr_lib.apps.held_out import held_out_faces
from expr_lib.datasets import to_float
from expr_lib.faces.plan import FacePlan
from expr_lib.faces.render import Renderer, load_renderer
from expr_lib.measure.evaluate import pairs_of, write_results
from expr_lib.measure.metrics import estimates, gain, masked_l1, sharpness
from expr_lib.model import Swapper
from expr_lib.moving import AtRest, resize
from expr_lib.swap import load

SIZE = 64


def rendered(plan: FacePlan, renderer: Renderer, rows: np.ndarray) -> Tensor:
    return to_float(plan.render(renderer, rows)[0]).permute(0, 3, 1, 2)  # (B, 3, S, S)


@torch.no_grad()
def answers(swapper: Swapper, plan: FacePlan, renderer: Renderer, rows: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
    """The answers (2B, 3, S, S) of all variants, with the input and the truth; and the face mask (2B, S, S).

    `rows` (2B,): all a, then all b.
    """
    other = np.roll(rows, len(rows) // 2)
    true_pixels, mask = plan.render(renderer, rows, au_rows=other)
    image, truth = rendered(plan, renderer, rows), to_float(true_pixels).permute(0, 3, 1, 2)
    rest = rendered(replace(plan, au=torch.zeros_like(plan.au)), renderer, rows)
    f_f, f_r = swapper.encode(image)
    f_f_truth, f_r_truth = swapper.encode(truth)
    f_r_b, true_rest = f_r.roll(len(rows) // 2, 0), AtRest(rest, f_f.map)
    soft = swapper.DG.take(image, swapper.E(resize(image, swapper.config.size)), f_r)
    return {
        "input": image,
        "truth": truth,
        "as it is": swapper.generate(f_f, f_r_b),
        "a face at rest without the lost detail": swapper.generate(AtRest(soft, f_f.map), f_r_b),
        "the mean `f_r` of b's true AUs": swapper.generate(f_f, swapper.f_r_of(plan.au[other])),
        "`f_r` of the true answer": swapper.generate(f_f, f_r_truth),
        "the true face at rest": swapper.generate(true_rest, f_r_b),
        "the true face at rest, `f_r` of the true answer": swapper.generate(true_rest, f_r_truth),
        "`f_f` of the true answer": swapper.generate(f_f_truth, f_r_b),
        "both of the true answer": swapper.generate(f_f_truth, f_r_truth),
    }, mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=SHIPPED)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "limits.json")
    args = parser.parse_args()
    swapper, plan, renderer = load(args.checkpoint), held_out_faces(SIZE), load_renderer()
    errors, sharp, people = defaultdict[str, list[Tensor]](list), defaultdict[str, list[Tensor]](list), []
    for chunk in np.array_split(pairs_of(plan, args.pairs), -(-args.pairs // 25)):
        rows = chunk.T.reshape(-1)
        given, mask = answers(swapper, plan, renderer, rows)
        for name, answer in given.items():
            errors[name].append(masked_l1(answer.float(), given["truth"], mask).double())
            sharp[name].append(sharpness(answer.float(), given["truth"], mask))
        people.append(plan.subject[rows])
    error = {name: torch.cat(values) for name, values in errors.items()}
    names = [name for name in error if name not in ("input", "truth")]
    found = estimates(
        lambda i: torch.stack([gain(error[name][i], error["input"][i]) for name in names]),
        torch.cat(people).numpy(), n_resamples=200,
    )  # fmt: skip
    gains = dict(zip(names, found, strict=True))
    sharpnesses = {name: round(torch.cat(sharp[name]).nanmedian().item(), 4) for name in names}
    about = {"checkpoint": args.checkpoint.name, "pairs": args.pairs, "size": SIZE}
    write_results(args.out, {"about": about, "gain": gains, "sharpness": sharpnesses})
    lines = [
        f"| {name} | {x['value']:.2f} ({x['low']:.2f} – {x['high']:.2f}) | {sharpnesses[name]:.2f} |"
        for name, x in gains.items()
    ]
    text = "\n".join(["| the generator is given | `gain` ↑ 1 | `sharpness` 1 |", "|---|---|---|", *lines])
    note = (
        f"{args.pairs} held-out pairs in both directions, {SIZE} px, 95 % intervals over people, {about['checkpoint']}."
    )
    args.out.with_suffix(".md").write_text(f"{text}\n\n{note}\n", encoding="utf-8")
    print(f"{text}\n\n{note}")


if __name__ == "__main__":
    main()
