"""The table: a swapper beside four trivial answers and its own ceiling, on held-out people whose true swap is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from expr_lib.datasets import FaceData, held_out_pairs, to_float
from expr_lib.faces.render import Renderer
from expr_lib.faces.sample import VERSION, FacePlan
from expr_lib.facs import AU_NAMES
from expr_lib.files import replace_file
from expr_lib.judges import Judges
from expr_lib.metrics import (
    bootstrap,
    f1,
    icc31,
    identity_kept,
    leak_au,
    leak_id,
    masked_l1,
    mmd2,
    partial_correlation,
    polynomial_kernel,
    probe_au,
    probe_subject,
    psnr,
    ssim,
    total_transfer_score,
    transfer_score,
)


class Swaps(Protocol):
    """What is measured: anything that takes a face apart and puts it together again."""

    def encode(self, image: Tensor, /) -> tuple[Tensor, Tensor]:
        """image (B, 3, S, S) in [-1, 1] -> f_f (B, ...) free of expression, f_r (B, ...) the expression."""

    def generate(self, f_f: Tensor, f_r: Tensor, /) -> Tensor:
        """-> image (B, 3, S, S) in [-1, 1]."""


ROWS = {
    "ours": "swap",
    "copy-input": "I^a itself: what doing nothing scores",
    "copy-other": "I^b itself: the right expression on the wrong person",
    "self-reconstruction": "self(I^a), compared with I^a: what encoding costs",
    "self-reconstruction of the truth": "self(T): the most that this encoder and generator could score",
    "true render": "T: the ceiling of the judges",
}
"""The answers that are compared, in the order of the table."""

MEASURES = {
    "transfer_score": ("↑ 1", 2),
    "au_icc": ("↑ 1", 2),
    "au_f1": ("↑ 1", 2),
    "own_expression_left": ("0", 2),
    "identity_kept": ("↑ 1", 2),
    "ssim": ("↑ 1", 3),
    "psnr": ("↑ dB", 1),
    "kid": ("↓ 0", 3),
}
"""Each measure of an answer: which way is better and what is perfect; decimals in the table."""

PER_AU = ("au_icc", "au_f1", "own_expression_left")
MARKERS = ("<!-- results: written by expr-lib evaluate, do not edit -->", "<!-- /results -->")


@torch.no_grad()
def evaluate(
    swapper: Swaps, plan: FacePlan, renderer: Renderer, judges: Judges, *, n_pairs: int = 500, seed: int = 0,
    split: str = "test", batch_size: int = 32, n_probe: int = 2000, n_resamples: int = 1000, device: str = "cpu",
    progress: bool = True, about: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Swap ``n_pairs`` fixed pairs of held-out people in both directions and measure every row of the table.

    Returns a JSON-ready dict; a figure is ``{"value", "low", "high"}`` with a 95 % interval, None where undefined:

    - ``rows``    {row of ``ROWS``: {measure of ``MEASURES``: figure}}
    - ``per_au``  {row: {AU: {measure of ``PER_AU``: figure}}}
    - ``leaks``   see :func:`leaks`, on up to ``n_probe`` images of the split; 0 to leave them out
    - ``swaps``   one entry for each swap of ours: rows a and b of the plan, transfer_score, cosine to a
    - ``n_pairs``, ``n_subjects``, ``seed``, ``split``, ``size``, ``generator``, and ``about`` (command, checkpoint ...)

    Trivial answers are taken as swappers whose self-reconstruction is perfect, so copy-input scores a transfer of 0 and
    the true render 1. Identity is compared with I^a, the very image that was swapped. KID compares every second pair
    with the true renders of the other pairs, and the other way round, so that no image meets its own answer.

    Raises ``ValueError`` for a swapper in training mode, and where ``split`` does not hold so many pairs.
    """
    if isinstance(swapper, nn.Module) and swapper.training:
        raise ValueError("swapper: found in training mode, expected eval mode: call swapper.eval() first")
    subject, au = plan.subject.numpy(), plan.au.double()
    labels = FaceData(np.empty((len(plan), 0, 0, 3), np.uint8), subject, plan.split, plan.au.numpy(), AU_NAMES, {})
    pairs = held_out_pairs(labels, n_pairs, seed, split=split)  # (n, 2)
    found: list[dict[str, dict[str, Tensor]]] = []
    with tqdm(total=2 * n_pairs, desc="evaluate", unit="swap", disable=not progress) as bar:
        for start in range(0, n_pairs, batch_size):
            a, b = pairs[start : start + batch_size].T  # (B,), (B,)
            rows = np.concatenate([a, b])  # (2B,): both directions at once
            found.append(_answers(swapper, plan, renderer, judges, rows, device))
            bar.update(len(rows))
    # a batch holds a -> b, then b -> a: sort the whole into (n) a -> b, then (n) b -> a
    answered = {
        name: {key: torch.cat([torch.cat([x[name][key].chunk(2)[k] for x in found]) for k in (0, 1)]) for key in values}
        for name, values in found[0].items()
    }
    a, b = np.concatenate([pairs, pairs[:, ::-1]]).T  # (2n,), (2n,)
    truth = answered["true render"]["features"]  # (2n, D)
    results: dict[str, Any] = {
        "rows": {}, "per_au": {}, "n_pairs": n_pairs, "n_subjects": len(np.unique(subject[a])),
        "seed": seed, "split": split, "size": plan.size, "generator": VERSION, "about": about or {},
    }  # fmt: skip
    for name in tqdm(ROWS, desc="intervals", disable=not progress):
        statistic = _Measured(answered[name], au[a], au[b], truth, judges.identity.threshold)
        values, (low, high) = statistic(torch.arange(len(a))), bootstrap(statistic, subject[a], n_resamples=n_resamples)
        figures = [_figure(*x) for x in zip(values.tolist(), low.tolist(), high.tolist(), strict=True)]
        results["rows"][name] = dict(zip(MEASURES, figures, strict=False))
        table = np.array(figures[len(MEASURES) :], object).reshape(len(PER_AU), len(AU_NAMES))
        results["per_au"][name] = {x: dict(zip(PER_AU, table[:, j], strict=True)) for j, x in enumerate(AU_NAMES)}
    probed = np.flatnonzero(plan.split == split)
    if len(probed) > n_probe:
        probed = np.sort(np.random.default_rng(seed).choice(probed, n_probe, replace=False))
    results["leaks"] = leaks(
        swapper,
        plan,
        renderer,
        probed,
        batch_size=batch_size,
        n_resamples=n_resamples,
        device=device,
        progress=progress,
    )
    ours = answered["ours"]
    score = transfer_score(ours["d_swap"], ours["d_self"], ours["d_truth"])  # (2n,)
    results["swaps"] = [
        {"a": int(i), "b": int(j), "transfer_score": _number(s), "cosine": _number(c)}
        for i, j, s, c in zip(a, b, score.tolist(), ours["cosine"].tolist(), strict=True)
    ]
    return results


def _answers(
    swapper: Swaps, plan: FacePlan, renderer: Renderer, judges: Judges, rows: np.ndarray, device: str
) -> dict[str, dict[str, Tensor]]:
    """What every row of the table answers for B pairs, as numbers (2B, ...).

    ``rows`` (2B,): a, then b; image i is swapped with image i + B.
    """
    other = np.roll(rows, len(rows) // 2)
    pixels, _ = plan.render(renderer, rows)
    true_pixels, mask = plan.render(renderer, rows, au_rows=other)
    image, truth = (to_float(x.to(device)).permute(0, 3, 1, 2) for x in (pixels, true_pixels))  # (2B, 3, S, S)
    mask = mask.to(device)  # (2B, S, S)
    f_f, f_r = swapper.encode(image)
    swap = swapper.generate(f_f, f_r.roll(len(rows) // 2, 0))
    itself, true_itself = swapper.generate(f_f, f_r), swapper.generate(*swapper.encode(truth))
    asked = judges.identity(image)  # (2B, 128)

    def measure(answer: Tensor, itself: Tensor, true_itself: Tensor, reference: Tensor = truth) -> dict[str, Tensor]:
        answer = answer.float()
        features = judges.identity.features(answer)  # (2B, D)
        numbers = {
            "d_swap": masked_l1(answer, truth, mask),
            "d_self": masked_l1(itself.float(), truth, mask),
            "d_truth": masked_l1(true_itself.float(), truth, mask),
            "au": judges.au(answer),  # (2B, n_aus)
            "cosine": (judges.identity.embed(features) * asked).sum(1),
            "ssim": ssim(answer, reference),
            "psnr": psnr(answer, reference),
            "features": features,
        }
        return {name: x.cpu() if name == "features" else x.double().cpu() for name, x in numbers.items()}

    return {
        "ours": measure(swap, itself, true_itself),
        "copy-input": measure(image, image, truth),
        "copy-other": measure(image.roll(len(rows) // 2, 0), image, truth),
        "self-reconstruction": measure(itself, itself, true_itself, image),
        "self-reconstruction of the truth": measure(true_itself, itself, true_itself),
        "true render": measure(truth, image, truth),
    }


class _Measured:
    """All measures of one row of the table on chosen swaps: ``MEASURES``, then ``PER_AU`` by AU, in one vector."""

    def __init__(self, x: dict[str, Tensor], au_a: Tensor, au_b: Tensor, truth: Tensor, threshold: float) -> None:
        self.x, self.au_a, self.au_b, self.threshold = x, au_a, au_b, threshold
        pair = torch.arange(len(truth)) % (len(truth) // 2)  # (2n,): swaps i and i + n are of one pair
        self.halves = [torch.nonzero(pair % 2 == k)[:, 0] for k in (0, 1)]
        self.kernels = []
        for one, other in (self.halves, self.halves[::-1]):
            fake, real = x["features"][one], truth[other]
            self.kernels.append([polynomial_kernel(u, v) for u, v in ((fake, fake), (real, real), (fake, real))])

    def __call__(self, rows: Tensor) -> Tensor:
        x = {name: values[rows] for name, values in self.x.items() if name != "features"}
        au_a, au_b = self.au_a[rows], self.au_b[rows]  # (M, n_aus)
        count = torch.bincount(rows, minlength=len(self.au_a))  # (2n,) how often each swap counts
        times = [count[half] for half in self.halves]
        distances = [mmd2(xx, yy, xy, *w) for (xx, yy, xy), w in zip(self.kernels, (times, times[::-1]), strict=True)]
        by_au = [icc31(x["au"], au_b), f1(x["au"], au_b), partial_correlation(x["au"], au_a, given=au_b)]
        total = [
            total_transfer_score(x["d_swap"], x["d_self"], x["d_truth"]),
            *(values.nanmean() for values in by_au),
            identity_kept(x["cosine"], self.threshold),
            x["ssim"].mean(),
            x["psnr"].mean(),
            torch.stack(distances).mean(),
        ]
        return torch.cat([torch.stack(total), *by_au])


@torch.no_grad()
def leaks(
    swapper: Swaps, plan: FacePlan, renderer: Renderer, rows: np.ndarray, *, batch_size: int = 32,
    n_resamples: int = 1000, device: str = "cpu", progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """``{"leak_au", "leak_id": figure, "n_images"}``: what fresh probes read from f_f and f_r of rows of the plan."""
    figures: dict[str, Any] = {"n_images": len(rows)}
    if len(rows) == 0:
        return figures | {name: _figure(math.nan, math.nan, math.nan) for name in ("leak_au", "leak_id")}
    features = []
    for chunk in tqdm(np.array_split(rows, -(-len(rows) // batch_size)), desc="leaks", disable=not progress):
        pixels, _ = plan.render(renderer, chunk)
        features.append([x.float().cpu() for x in swapper.encode(to_float(pixels.to(device)).permute(0, 3, 1, 2))])
    f_f, f_r = (torch.cat(x) for x in zip(*features, strict=True))  # (M, ...), (M, ...)
    who, shown = plan.subject.numpy()[rows], plan.au[torch.from_numpy(rows)]
    read_au, share = probe_au(f_f, shown, who), leak_id(probe_subject(f_r, who), who)
    statistics = {"leak_au": lambda i: leak_au(read_au[i], shown[i]), "leak_id": lambda i: share[i].nanmean()}
    for name, statistic in statistics.items():
        low, high = bootstrap(statistic, who, n_resamples=n_resamples)
        figures[name] = _figure(statistic(torch.arange(len(rows))).item(), low.item(), high.item())
    return figures


def _number(x: float) -> float | None:
    """JSON has no NaN and no infinity: None."""
    return round(x, 6) if math.isfinite(x) else None


def _figure(value: float, low: float, high: float) -> dict[str, float | None]:
    return {"value": _number(value), "low": _number(low), "high": _number(high)}


# -- files ---------------------------------------------------------------------------------------------------------


def write_results(path: str | Path, results: dict[str, Any]) -> None:
    """Write ``results`` as JSON, whole or not at all."""
    replace_file(Path(path), (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())


def markdown_table(results: dict[str, Any]) -> str:
    """The rows of ``results`` as a Markdown table: values with 95 % intervals; leaks and command stand below it."""

    def cell(figure: dict[str, float | None], digits: int) -> str:
        value, low, high = (None if x is None else f"{round(x, digits) + 0.0:.{digits}f}" for x in figure.values())
        return "–" if value is None else value if low is None or high is None else f"{value} ({low} – {high})"

    lines = [
        "| | " + " | ".join(f"`{name}` {better}" for name, (better, _) in MEASURES.items()) + " |",
        "|---" * (len(MEASURES) + 1) + "|",
    ]
    for name, figures in results["rows"].items():
        cells = [cell(figures[measure], digits) for measure, (_, digits) in MEASURES.items()]
        lines.append("| " + " | ".join([f"**{name}**" if name == "ours" else name, *cells]) + " |")
    au, identity = (cell(results["leaks"][name], digits) for name, digits in (("leak_au", 2), ("leak_id", 1)))
    lines += [
        "",
        f"{results['n_pairs']} pairs of {results['n_subjects']} held-out people in both directions, "
        f"{results['size']} px, 95 % bootstrap intervals over people. On {results['leaks']['n_images']} images, "
        f"`leak_au` {au} (none: 0.5), `leak_id` {identity} times chance (none: 1).",
    ]
    if command := results["about"].get("command"):
        lines += ["", f"Made by `{command}`."]
    return "\n".join(lines)


def update_readme_table(readme: str | Path, results: dict[str, Any]) -> None:
    """Put the table of ``results`` between the ``MARKERS`` of a Markdown file; ``ValueError`` where it has none."""
    readme = Path(readme)
    text = readme.read_text(encoding="utf-8")
    begin, end = (text.find(marker) for marker in MARKERS)
    if not 0 <= begin < end:
        raise ValueError(f"{readme}: found no pair of lines {MARKERS[0]!r} and {MARKERS[1]!r}, expected one")
    new = f"{text[: begin + len(MARKERS[0])]}\n{markdown_table(results)}\n{text[end:]}"
    replace_file(readme, new.encode())
