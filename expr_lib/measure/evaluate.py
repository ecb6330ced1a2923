"""The results table: a swapper and reference answers on held-out rendered people, for whom the true swap is known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from expr_lib.datasets import FaceData, held_out_pairs, to_float
from expr_lib.errors import InputError
from expr_lib.faces.parameters import Views
from expr_lib.faces.plan import VERSION, FacePlan
from expr_lib.faces.render import Renderer, rotation
from expr_lib.facs import AU_NAMES
from expr_lib.files import replace_file
from expr_lib.measure.dlib_judge import DlibJudge
from expr_lib.measure.judges import IdentityJudge, Judges
from expr_lib.measure.metrics import (
    estimates,
    f1,
    gain,
    icc31,
    identity_kept,
    json_number,
    masked_l1,
    mmd2,
    nearer,
    partial_correlation,
    people_kernels,
    psnr,
    rest_left,
    sharpness,
    ssim,
    total_transfer_score,
    transfer_score,
)
from expr_lib.measure.probes import SwapMethod, by_numbers, cross_talk, leaks
from expr_lib.model import Swapper
from expr_lib.schema import ResultsFile, checked, read_json

ROWS = {
    "ours": "swap",
    "copy-input": "I^a itself: what doing nothing scores",
    "copy-other": "I^b itself: the right expression on the wrong person",
    "average face": "a with the mean expression of the training people: what a cautious guess scores, without I^b",
    "self-reconstruction": "self(I^a), compared with I^a: what encoding costs",
    "self-reconstruction of the truth": "self(T): the most that this encoder and generator could score",
    "render of what is read": "T with the AUs that the judge reads from I^b: as far as an estimator carries",
    "true render": "T: the ceiling of the judges",
}
"""The answers that are compared, in the order of the table."""

MEASURES = {
    "gain": ("↑ 1", 2),
    "nearer": ("↑ 1", 2),
    "transfer_score": ("↑ 1", 2),
    "au_icc": ("↑ 1", 2),
    "au_f1": ("↑ 1", 2),
    "own_expression_left": ("0", 2),
    "rest_left": ("↓ 0", 2),
    "identity_kept": ("↑ 1", 2),
    "identity_cosine": ("↑ 1", 2),
    "ssim": ("↑ 1", 3),
    "psnr": ("↑ dB", 1),
    "sharpness": ("1", 2),
    "kid": ("↓ 0", 3),
}
"""Each measure: which direction is better, the perfect value, and the number of decimals in the table.

`identity_kept` is 1.00 for every answer that starts from a, so `identity_cosine` stands beside it: the mean cosine of
the embeddings of the answer and of a. It was chosen instead of a stricter threshold because a share saturates at any
threshold, while the mean still tells two answers apart that are both accepted.
"""
SECOND = {"identity_kept_dlib": ("↑ 1", 2)}
"""`identity_kept` by the second identity judge, if there is one."""

UNDEFINED: dict[str, float | None] = dict.fromkeys(("value", "low", "high"))
PER_AU = ("au_icc", "au_f1", "own_expression_left")


STRATA = {
    "expression_distance": "Euclidean distance of the AU vectors of a and b",
    "pose_gap": "angle between the heads of a and b, in degrees",
}
"""Quantities by which the pairs are divided into parts of equal size."""


@torch.no_grad()
def evaluate(
    swapper: SwapMethod, plan: FacePlan, renderer: Renderer, judges: Judges, *, n_pairs: int = 500, seed: int = 0,
    batch_size: int = 32, n_strata: int = 3, n_probe: int = 6000, n_moves: int = 32, n_express: int = 0,
    n_resamples: int = 1000, device: str = "cpu", progress: bool = True, about: dict[str, Any] | None = None,
    second: DlibJudge | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Swap `n_pairs` fixed pairs of people of the split test in both directions and measure every row of the table.

    Returns a dict for JSON; an estimate is `{"value", "low", "high"}` with a 95 % interval, None if undefined:

    - `rows`        {row of `ROWS`: {measure of `MEASURES`: estimate}}, and `SECOND` with a `second` judge
    - `per_au`      {row: {AU: {measure of `PER_AU`: estimate}}}
    - `strata`      {name in `STRATA`: [{"low", "high", "n_swaps", "rows", "per_au"} of each part, nearest first]},
      `n_strata` parts; 0 leaves them out
    - `leaks`       see `probes.leaks`, with `n_probe` images for fitting; None if that is 0
    - `cross_talk`  see `probes.cross_talk`, with `n_moves` moves of each AU; None if that is 0
    - `by_numbers`  see `probes.by_numbers`, with `n_express` faces; None if that is 0 or there is no table
    - `swaps`       one entry for each of our swaps: rows a and b of the plan, the quantities of `STRATA`, gain,
      copy (`d(I^a, T)`, in [0, 2]), transfer_score, way (`d_self - d_truth`, in [0, 2]), cosine to a
    - `n_pairs`, `n_subjects`, `seed`, `split`, `size`, `generator`, and `about` (command, checkpoint ...)

    Trivial answers count as methods with perfect self-reconstruction, so copy-input has a transfer of 0 and the true
    render of 1. `rest_left` is measured if f_f is a picture (`swapper.rest`); copy-input keeps all expression, and
    the true render has the true face at rest. Identity is compared with the input I^a. KID compares the answers with
    the true renders, but only those of swaps that have no person in common (`metrics.people_kernels`).

    Raises `InputError` for a swapper in training mode, if the split has too few pairs, and if a part would have
    fewer than two.
    """
    if n_pairs < 2 * n_strata:
        raise InputError(f"found {n_pairs} pairs for {n_strata} strata, expected at least two pairs in each")
    if isinstance(swapper, nn.Module) and swapper.training:
        raise InputError("swapper: found training mode, expected eval mode; call swapper.eval() first")
    subject, au = plan.subject.numpy(), plan.au.double()
    pairs = pairs_of(plan, n_pairs, seed)  # (n, 2)
    found: list[dict[str, dict[str, Tensor]]] = []
    with tqdm(total=2 * n_pairs, desc="evaluate", unit="swap", disable=not progress) as bar:
        for start in range(0, n_pairs, batch_size):
            a, b = pairs[start : start + batch_size].T  # (B,), (B,)
            rows = np.concatenate([a, b])  # (2B,): both directions at once
            found.append(_answers(swapper, plan, renderer, judges, second, rows, device))
            bar.update(len(rows))
    # each batch has its a -> b, then its b -> a; now (n) all a -> b, then (n) all b -> a
    answered = {
        name: {key: torch.cat([torch.cat([x[name][key].chunk(2)[k] for x in found]) for k in (0, 1)]) for key in values}
        for name, values in found[0].items()
    }
    both = np.concatenate([pairs, pairs[:, ::-1]])  # (2n, 2)
    a, b = both.T  # (2n,), (2n,)
    gaps = {
        "expression_distance": (au[a] - au[b]).norm(dim=1),
        "pose_gap": pose_gap(plan.views[a], plan.views[b]).double(),
    }  # {name: (2n,)}, equal for both directions of a pair

    def table(rows: np.ndarray) -> dict[str, Any]:
        """`rows` and `per_au` of some swaps (2m,): m times a -> b, then the same pairs b -> a."""
        tables: dict[str, Any] = {"rows": {}, "per_au": {}}
        truth = answered["true render"]["features"][rows]  # (2m, D)
        for name, values in answered.items():
            chosen = {key: x[rows] for key, x in values.items()}
            people = np.unique(subject[both[rows]], return_inverse=True)[1].reshape(-1, 2)  # (2m, 2): of a and b
            shown = int(name == "copy-other")  # whom the answer shows: 0 for a, 1 for b
            statistic = _Measured(chosen, au[a[rows]], au[b[rows]], truth, people, shown, judges.identity, second)
            measured = estimates(statistic, people[:, 0], n_resamples=n_resamples)
            total, by_au = measured[: -len(PER_AU) * len(AU_NAMES)], measured[-len(PER_AU) * len(AU_NAMES) :]
            tables["rows"][name] = dict(zip(MEASURES | SECOND, total, strict=False))
            columns = {measure: by_au[k * len(AU_NAMES) :] for k, measure in enumerate(PER_AU)}
            tables["per_au"][name] = {
                unit: {measure: values[j] for measure, values in columns.items()} for j, unit in enumerate(AU_NAMES)
            }
            steps.update()
        return tables

    strata: dict[str, list[dict[str, Any]]] = {name: [] for name in STRATA}
    n_tables = 1 + n_strata * len(STRATA)
    with tqdm(total=n_tables * len(ROWS), desc="intervals", unit="row", disable=not progress) as steps:
        results: dict[str, Any] = table(np.arange(len(both)))
        for name, gap in gaps.items() if n_strata else ():
            for part in np.array_split(gap[:n_pairs].argsort(stable=True).numpy(), n_strata):
                ends = {
                    "low": json_number(gap[part].min()),
                    "high": json_number(gap[part].max()),
                    "n_swaps": 2 * len(part),
                }
                strata[name].append(ends | table(np.concatenate([part, part + n_pairs])))
    settings: dict[str, Any] = {
        "batch_size": batch_size, "n_resamples": n_resamples, "device": device, "progress": progress,
    }  # fmt: skip
    probed = np.flatnonzero(plan.split == "test")
    ours = answered["ours"]
    columns = {
        **gaps,
        "gain": 1 - ours["d_swap"] / ours["d_copy"],
        "copy": ours["d_copy"],
        "transfer_score": transfer_score(ours["d_swap"], ours["d_self"], ours["d_truth"]),
        "way": ours["d_self"] - ours["d_truth"],
        "cosine": ours["cosine"],
    }  # {name: (2n,)}
    return results | {
        "strata": strata,
        "leaks": leaks(swapper, plan, renderer, probed, n_probe, **settings) if n_probe else None,
        "cross_talk": (
            cross_talk(swapper, plan, renderer, judges.au, both, n_each=n_moves, **settings) if n_moves else None
        ),
        "by_numbers": (
            by_numbers(swapper, plan, renderer, judges.au, probed[:: max(1, len(probed) // n_express)][:n_express],
                       batch_size=batch_size, device=device, progress=progress)
            if n_express and isinstance(swapper, Swapper) and swapper.table is not None else None
        ),
        "n_pairs": n_pairs, "n_subjects": len(np.unique(subject[a])),
        "seed": seed, "split": "test", "size": plan.size, "generator": VERSION, "about": about or {},
        "swaps": [
            {"a": int(a[i]), "b": int(b[i]), **{name: json_number(x[i]) for name, x in columns.items()}}
            for i in range(len(both))
        ],
    }  # fmt: skip


def pairs_of(plan: FacePlan, n_pairs: int, seed: int = 0) -> np.ndarray:
    """The fixed pairs (n, 2) of rows of a plan, in the split test, that are measured, by `datasets.held_out_pairs`."""
    empty = np.empty((len(plan), 0, 0, 3), np.uint8)
    labels = FaceData(empty, plan.subject.numpy(), plan.split, plan.au.numpy(), AU_NAMES, {})
    return held_out_pairs(labels, n_pairs, seed)


def mean_expression(plan: FacePlan) -> Tensor:
    """Mean AUs of the training people of a plan, (n_aus,); of all its people if none of them is for training."""
    training = torch.from_numpy(plan.split == "train")
    return plan.au[training if training.any() else ...].mean(0)


def pose_gap(a: Views, b: Views) -> Tensor:
    """Angle of the rotation between the poses of two heads, in degrees, (B,)."""
    turn = rotation(a.yaw, a.pitch, a.roll).mT @ rotation(b.yaw, b.pitch, b.roll)  # (B, 3, 3)
    cosine = (turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    return cosine.clamp(-1, 1).acos().rad2deg()


def _answers(
    swapper: SwapMethod,
    plan: FacePlan,
    renderer: Renderer,
    judges: Judges,
    second: DlibJudge | None,
    rows: np.ndarray,
    device: str,
) -> dict[str, dict[str, Tensor]]:
    """Measurements of every row of the table for B pairs: {row: {name: (2B, ...)}}.

    `rows` (2B,): a, then b; image i is swapped with image i + B.
    """
    other = np.roll(rows, len(rows) // 2)
    pixels, _ = plan.render(renderer, rows)
    true_pixels, mask = plan.render(renderer, rows, au_rows=other)
    image, truth = (to_float(x.to(device)).permute(0, 3, 1, 2) for x in (pixels, true_pixels))  # (2B, 3, S, S)
    mask = mask.to(device)  # (2B, S, S)
    f_f, f_r = swapper.encode(image)
    swap = swapper.generate(f_f, f_r.roll(len(rows) // 2, 0))
    itself, true_itself = swapper.generate(f_f, f_r), swapper.generate(*swapper.encode(truth))
    as_read = plan.au.clone()
    as_read[rows] = judges.au(image).to(as_read)
    read_pixels, _ = replace(plan, au=as_read).render(renderer, rows, au_rows=other)
    read = to_float(read_pixels.to(device)).permute(0, 3, 1, 2)  # (2B, 3, S, S)
    at_rest, _ = replace(plan, au=torch.zeros_like(plan.au)).render(renderer, rows)
    average_pixels, _ = replace(plan, au=mean_expression(plan).expand_as(plan.au)).render(renderer, rows)
    average = to_float(average_pixels.to(device)).permute(0, 3, 1, 2)  # (2B, 3, S, S)
    rest = {
        "copy-input": image,
        "true render": to_float(at_rest.to(device)).permute(0, 3, 1, 2),
    }  # {row: (2B, 3, S, S)}
    if isinstance(swapper, Swapper) and (face := swapper.rest(f_f)) is not None:
        rest["ours"] = face.float()
    read_rest = {name: judges.au(shown) for name, shown in rest.items()}  # (2B, n_aus)
    asked = judges.identity(image)  # (2B, 128)
    asked_second = second(image) if second else None  # (2B, 128)

    def measure(
        name: str, answer: Tensor, itself: Tensor, true_itself: Tensor, reference: Tensor = truth
    ) -> dict[str, Tensor]:
        answer = answer.float()
        features = judges.identity.features(answer)  # (2B, D)
        numbers = {
            "d_swap": masked_l1(answer, truth, mask),
            "d_copy": masked_l1(image, truth, mask),
            "d_self": masked_l1(itself.float(), truth, mask),
            "d_truth": masked_l1(true_itself.float(), truth, mask),
            "au": judges.au(answer),  # (2B, n_aus)
            "au_rest": read_rest.get(name, torch.full_like(read_rest["copy-input"], torch.nan)),
            "au_input": read_rest["copy-input"],
            "cosine": (judges.identity.embed(features) * asked).sum(1),
            "ssim": ssim(answer, reference),
            "psnr": psnr(answer, reference),
            "sharpness": sharpness(answer, reference, mask),
            "features": features,
        }
        if second and asked_second is not None:
            numbers["cosine_second"] = (second(answer) * asked_second).sum(1)
        return {name: x.cpu() if name == "features" else x.cpu().double() for name, x in numbers.items()}

    answers = {
        "ours": (swap, itself, true_itself),
        "copy-input": (image, image, truth),
        "copy-other": (image.roll(len(rows) // 2, 0), image, truth),
        "average face": (average, image, truth),
        "self-reconstruction": (itself, itself, true_itself, image),
        "self-reconstruction of the truth": (true_itself, itself, true_itself),
        "render of what is read": (read, image, truth),
        "true render": (truth, image, truth),
    }
    return {name: measure(name, *images) for name, images in answers.items()}


class _Measured:
    """One row of the table for some swaps, as one vector: `MEASURES`, `SECOND` if used, `PER_AU` by AU."""

    def __init__(
        self, x: dict[str, Tensor], au_a: Tensor, au_b: Tensor, truth: Tensor, people: np.ndarray, shown: int,
        *judges: IdentityJudge | DlibJudge | None,
    ) -> None:  # fmt: skip
        self.x, self.au_a, self.au_b, self.thresholds = x, au_a, au_b, [judge.threshold for judge in judges if judge]
        who = torch.from_numpy(people)  # (2n, 2): of a and b
        self.person = who[:, 0]
        self.swaps_of = torch.bincount(self.person)  # (P,)
        self.kernels, self.counts = people_kernels(x["features"], truth, who, who[:, shown], self.person)

    def __call__(self, rows: Tensor) -> Tensor:
        x = {name: values[rows] for name, values in self.x.items() if name != "features"}
        au_a, au_b = self.au_a[rows], self.au_b[rows]  # (M, n_aus)
        times = torch.bincount(self.person[rows], minlength=len(self.swaps_of)) / self.swaps_of  # (P,) in a bootstrap
        by_au = [icc31(x["au"], au_b), f1(x["au"], au_b), partial_correlation(x["au"], au_a, given=au_b)]
        total = [
            gain(x["d_swap"], x["d_copy"]),
            nearer(x["d_swap"], x["d_copy"]),
            total_transfer_score(x["d_swap"], x["d_self"], x["d_truth"]),
            *(values.nanmean() for values in by_au),
            rest_left(x["au_rest"], x["au_input"]),
            identity_kept(x["cosine"], self.thresholds[0]),
            x["cosine"].mean(),
            x["ssim"].mean(),
            x["psnr"].mean(),
            x["sharpness"].nanmedian(),
            mmd2(*self.kernels, times, times, self.counts),
        ]
        total += [identity_kept(x["cosine_second"], threshold) for threshold in self.thresholds[1:]]
        return torch.cat([torch.stack(total), *by_au])


# -- files -----------------------------------------------------------------------------------------------------------


def write_results(path: str | Path, results: dict[str, Any]) -> None:
    """Write `results` as JSON, whole or not at all, with each estimate and list of numbers on one line."""
    text = json.dumps(results, indent=1, allow_nan=False)
    text = re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda innermost: re.sub(r"\n *", " ", innermost[0]), text)
    replace_file(Path(path), (text + "\n").encode())


def read_results(path: Path) -> dict[str, Any]:
    """Read a file of `write_results`; `InputError` for any other file."""
    results = read_json(path)
    checked(ResultsFile, results, str(path))
    return results
