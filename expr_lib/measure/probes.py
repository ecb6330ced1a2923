"""Two measures of disentanglement: what can be read from the features, and whether one action unit moves alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor, nn
from tqdm import tqdm

from expr_lib.blocks import Residual, conv_bn
from expr_lib.datasets import to_float
from expr_lib.faces.plan import FacePlan, FacesConfig, plan_faces
from expr_lib.faces.render import Renderer
from expr_lib.facs import AU_NAMES, MAX_INTENSITY, PRESENT_AT
from expr_lib.measure.judges import AUJudge
from expr_lib.measure.metrics import balanced_accuracy, estimates, json_number, leak_id
from expr_lib.model import Swapper, mix
from expr_lib.moving import as_map

PROBE_SEED = 1909
"""Seed of the people on whom the probe of f_f is fitted; no other data set may use it."""
AMOUNTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Weights with which one AU is moved from a to b."""
DIFFERS = 2.0
"""Smallest difference of intensity between two faces for an AU to be moved."""


class SwapMethod(Protocol):
    """A method that can be measured: it encodes a face into two features and generates a face from them."""

    def encode(self, image: Tensor, /) -> tuple[Tensor, Tensor]:
        """image (B, 3, S, S) in [-1, 1] -> f_f (B, ...) without expression, f_r (B, ...) with it."""

    def generate(self, f_f: Tensor, f_r: Tensor, /) -> Tensor:
        """f_f (B, ...), f_r (B, ...) -> image (B, 3, S, S) in [-1, 1]."""


def render(plan: FacePlan, renderer: Renderer, rows: np.ndarray | Tensor, device: str) -> Tensor:
    """Rows of a plan -> images (B, 3, S, S) in [-1, 1], with the rounding of 8-bit pixels."""
    pixels, _ = plan.render(renderer, rows)
    return to_float(pixels.to(device)).permute(0, 3, 1, 2)  # (B, S, S, 3) -> (B, 3, S, S)


# -- reading the features --------------------------------------------------------------------------------------------


def _reader(channels: int, n_aus: int) -> nn.Sequential:
    """A network of the shape of D_f, one logit for each AU: map (B, channels, H, W) -> (B, n_aus)."""
    return nn.Sequential(
        conv_bn(channels, 64), conv_bn(64, 64, stride=2), Residual(64),  # (B, 64, H/2, W/2)
        conv_bn(64, 128, stride=2), nn.AdaptiveAvgPool2d(4), nn.Flatten(),  # (B, 2048), with places kept apart
        nn.Linear(2048, 256), nn.ReLU(), nn.Linear(256, n_aus),
    )  # fmt: skip


def probe_au(
    f_f: Tensor, au: Tensor, other_f_f: Tensor, *, epochs: int = 8, seed: int = 0,
    device: str = "cpu", progress: bool = False,
) -> Tensor:  # fmt: skip
    """AUs read from `other_f_f` by a new network fitted to the maps f_f (N, C, H, W) and labels `au` (N, n_aus).

    `other_f_f` (M, C, H, W) should be of other people. Returns (M, n_aus): 1 present, 0 absent, NaN for an AU that is
    present in all or none of `au`; NaN labels are ignored.

    The network has the shape of D_f, so D_f could have found in training what it finds. It is trained by Adam with a
    one-cycle schedule, with equal weight for both classes of an AU, as in the balanced accuracy. Maps above 16 x 16
    are folded into channels. In the first thousand steps or so it learns nothing, so it needs small batches and at
    least several thousand images. Our choice.
    """
    fold = max(1, max(f_f.shape[2:]) // 16)
    fitted, other = (F.pixel_unshuffle(x.float(), fold) for x in (f_f, other_f_f))  # (N, fold^2 C, H/fold, W/fold)
    mean, std = fitted.mean((0, 2, 3), keepdim=True), fitted.std((0, 2, 3), keepdim=True) + 1e-6
    fitted, other = ((x - mean) / std for x in (fitted, other))
    known, present = ~au.isnan(), (au >= PRESENT_AT)  # (N, n_aus) each
    count = [(known & (present == c)).sum(0) for c in (False, True)]  # 2 x (n_aus,)
    asked = (count[0] > 0) & (count[1] > 0)
    weight = torch.where(present, 1 / count[1].clamp(min=1), 1 / count[0].clamp(min=1)) * known * asked * len(au) / 2

    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        reader = _reader(fitted.shape[1], au.shape[1]).to(device).train()
        batch_size = min(16, len(au))
        steps = epochs * (len(au) // batch_size)
        optimizer = torch.optim.Adam(reader.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps + 1, pct_start=0.2)
        orders = [torch.randperm(len(au))[: len(au) // batch_size * batch_size] for _ in range(epochs)]
        batches = torch.cat(orders).view(-1, batch_size)
        for rows in tqdm(batches, desc="probe of f_f", unit="step", disable=not progress):
            logit = reader(fitted[rows].to(device))  # (B, n_aus)
            target, w = present[rows].to(logit), weight[rows].to(logit)
            loss = F.binary_cross_entropy_with_logits(logit, target, w)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        reader.eval()
        logit = torch.cat([reader(chunk.to(device)).cpu() for chunk in other.split(256)])  # (M, n_aus)
    return (logit > 0).double().masked_fill(~asked, torch.nan)


def probe_subject(f_r: Tensor, subject: np.ndarray) -> np.ndarray:
    """The subject of each image predicted from f_r (N, ...), cross-validated over images in five folds, (N,).

    The probe is a support vector machine with a Gaussian kernel `exp(-|u - v|^2 / D)` on standardized features. The
    result is -1 for subjects with fewer than five images. More images improve a probe, so compare leaks at the
    same N only.
    """
    _, index, count = np.unique(subject, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(count[index] >= 5)
    read = np.full(len(subject), -1)
    if len(np.unique(subject[rows])) >= 2:
        x = StandardScaler().fit_transform(f_r[torch.from_numpy(rows)].flatten(1).numpy())  # (N, D)
        svm = SVC(C=10.0, kernel="precomputed", class_weight="balanced")
        cv = StratifiedKFold(5, shuffle=True, random_state=0)
        read[rows] = cross_val_predict(svm, rbf_kernel(x, gamma=1 / x.shape[1]), subject[rows], cv=cv)
    return read


@torch.no_grad()
def leaks(
    swapper: SwapMethod, plan: FacePlan, renderer: Renderer, rows: np.ndarray, n_probe: int, *, batch_size: int = 32,
    n_resamples: int = 1000, device: str = "cpu", progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """What probes read from f_f and f_r of the given rows of the plan, as estimates with intervals.

    - `leak_au`  from f_f, fitted to `n_probe` images of other new people, ten of each
    - `leak_id`  from f_r, cross-validated over the rows
    - `per_au`   {AU: estimate of `leak_au`};  `n_images`, `n_fitted`: number of images read and fitted
    """
    more = plan_faces(FacesConfig(max(2, n_probe // 10), 10, size=plan.size, seed=PROBE_SEED, val=0.0, test=0.0))

    def features(plan: FacePlan, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """-> f_f (N, ...), f_r (N, ...), on the CPU."""
        chunks = np.array_split(rows, -(-len(rows) // batch_size))
        found: list[tuple[Tensor, Tensor]] = []
        for chunk in tqdm(chunks, desc="features", unit="batch", disable=not progress):
            f_f, f_r = swapper.encode(render(plan, renderer, chunk, device))
            found.append((as_map(f_f).float().cpu(), f_r.float().cpu()))
        all_f_f, all_f_r = (torch.cat(part) for part in zip(*found, strict=True))
        return all_f_f, all_f_r

    f_f, f_r = features(plan, rows)
    fitted, _ = features(more, np.arange(len(more)))
    who, shown = plan.subject.numpy()[rows], plan.au[torch.from_numpy(rows)]  # (N,), (N, n_aus)
    read = probe_au(fitted, more.au, f_f, device=device, progress=progress)  # (N, n_aus)
    share = leak_id(probe_subject(f_r, who), who)  # (N,)

    def statistic(i: Tensor) -> Tensor:
        by_au = balanced_accuracy(read[i], shown[i])  # (n_aus,)
        return torch.cat([torch.stack([by_au.nanmean(), share[i].nanmean()]), by_au])

    leak, subject, *by_au = estimates(statistic, who, n_resamples=n_resamples)
    about = {"n_images": len(rows), "n_fitted": len(more), "per_au": dict(zip(AU_NAMES, by_au, strict=True))}
    return {"leak_au": leak, "leak_id": subject, **about}


# -- moving one action unit alone ------------------------------------------------------------------------------------


@torch.no_grad()
def cross_talk(
    swapper: SwapMethod, plan: FacePlan, renderer: Renderer, judge: AUJudge, pairs: np.ndarray, *, n_each: int = 32,
    batch_size: int = 32, n_resamples: int = 1000, device: str = "cpu", progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Move one AU k from a to b, `G(f_f^a, mix(f_r^a, f_r^b, w e_k))`, w in `AMOUNTS`, and judge the results.

    For each k, these are the first `n_each` of the pairs (N, 2) of rows whose intensities of k differ by `DIFFERS`
    or more. The same is measured for true renders in which only k moves, to show the errors of the judge. f_r is
    (B, n_aus, d).

    Returns `{"weights", "n_moves": {AU: int}, "network": {...}, "true render": {...}}`, with estimates of:

    - `matrix`      (n_aus, n_aus): change of j (column) over the change of k (row), w from 0 to 1, median over moves
    - `moved`       {AU: change of k over the requested change, median}: 1 is all, 0 is nothing
    - `curve`       [estimate of the same at each weight], over the moves of all AUs
    - `others`      mean of the absolute changes of all j != k over the change of k, median over moves; 0 is perfect
    - `largest`     the same with the largest in place of the mean
    - `monotone`    share of the moves in which k changes in the right direction at every step
    - `steps_back`  share of the steps from one weight to the next in the wrong direction

    A move in which k does not change in the right direction is ignored in `matrix` and infinite in `others` and
    `largest`, so that a method that does nothing does not score well.
    """
    a, b = torch.from_numpy(pairs).T  # (N,), (N,)
    apart = (plan.au[b] - plan.au[a]).abs() >= DIFFERS  # (N, n_aus)
    moves = [torch.nonzero(apart[:, k])[:n_each, 0] for k in range(len(AU_NAMES))]
    unit = torch.arange(len(AU_NAMES)).repeat_interleave(torch.tensor([len(m) for m in moves]))  # (M,)
    a, b = a[torch.cat(moves)], b[torch.cat(moves)]  # (M,), (M,)
    asked = (plan.au[b] - plan.au[a]).gather(1, unit[:, None])[:, 0].double()  # (M,)
    read: dict[str, list[Tensor]] = {"network": [], "true render": []}
    chunks = torch.arange(len(unit)).split(batch_size)
    for chunk in tqdm(chunks, desc="cross-talk", unit="batch", disable=not progress):
        only = F.one_hot(unit[chunk], len(AU_NAMES)).float()  # (B, n_aus)
        image, donor = (render(plan, renderer, x[chunk], device) for x in (a, b))  # (B, 3, S, S) each
        (f_f, f_r), (_, f_r_b) = swapper.encode(image), swapper.encode(donor)
        network, truth = [], []
        for w in AMOUNTS:
            network.append(judge(swapper.generate(f_f, mix(f_r, f_r_b, w * only.to(device))).float()))
            au = torch.lerp(plan.au[a[chunk]], plan.au[b[chunk]], w * only)  # (B, n_aus)
            true = replace(plan, subject=plan.subject[a[chunk]], views=plan.views[a[chunk]], au=au)
            truth.append(judge(render(true, renderer, torch.arange(len(chunk)), device) if w else image))
        for name, values in (("network", network), ("true render", truth)):
            read[name].append(torch.stack(values, 1).cpu().double())  # (B, 5, n_aus)
    who = plan.subject[a].numpy()
    return {
        "weights": list(AMOUNTS),
        "n_moves": {name: len(rows) for name, rows in zip(AU_NAMES, moves, strict=True)},
        **{name: _spread(torch.cat(x), unit, asked, who, n_resamples) for name, x in read.items()},
    }


def _spread(read: Tensor, unit: Tensor, asked: Tensor, who: np.ndarray, n_resamples: int) -> dict[str, Any]:
    """Judged intensities `read` (M, 5, n_aus) of M moves of AU `unit` (M,) by `asked` (M,) -> the measures."""
    path = (read - read[:, :1]) * asked.sign()[:, None, None]  # (M, 5, n_aus): > 0 is the right direction
    k = unit[:, None]
    own = path.gather(2, k[:, None].expand(-1, len(AMOUNTS), 1))[:, :, 0]  # (M, 5)
    changed = own[:, -1:].where(own[:, -1:] > 0, torch.nan)  # (M, 1)
    share = path[:, -1] / changed  # (M, n_aus)
    others = share.abs().scatter(1, k, 0.0).nan_to_num(torch.inf)  # (M, n_aus)
    steps_back = (own.diff(dim=1) < 0).double()  # (M, 4)
    reached = own / asked.abs()[:, None]  # (M, 5)
    each = torch.stack(
        [
            others.sum(1) / (others.shape[1] - 1),
            others.amax(1),
            ((own[:, -1] > 0) & (steps_back.sum(1) == 0)).double(),
            steps_back.mean(1),
        ],
        1,
    )  # (M, 4)

    def statistic(i: Tensor) -> Tensor:
        return torch.cat([each[i, :2].median(0).values, each[i, 2:].mean(0), reached[i].median(0).values])

    names = ("others", "largest", "monotone", "steps_back")
    found = estimates(statistic, who, n_resamples=n_resamples)
    rows = [torch.nonzero(unit == j)[:, 0] for j in range(read.shape[2])]
    return {
        **dict(zip(names, found[:4], strict=True)),
        "curve": found[4:],
        "moved": {
            AU_NAMES[j]: json_number(reached[i, -1].median().item()) if len(i) else None for j, i in enumerate(rows)
        },
        "matrix": [
            [json_number(x) for x in share[i].nanmedian(0).values.tolist()] if len(i) else [None] * len(rows)
            for i in rows
        ],
    }


# -- setting an action unit to a number ------------------------------------------------------------------------------


@torch.no_grad()
def by_numbers(
    swapper: Swapper, plan: FacePlan, renderer: Renderer, judge: AUJudge, rows: np.ndarray, *, batch_size: int = 32,
    device: str = "cpu", progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Set one AU of each face to 0, 1, ..., 5 by the table of f_r, as `expr-lib express` does, and read it.

    `rows` (N,) of the plan; the other AUs stay as they are read from the face. Beside it the same for true renders.

    Returns `{"n_faces", "network": {...}, "true render": {...}}`, each `{AU: {"read", "others", "monotone"}}`:

    - `read`      six numbers: judged intensity of the AU at each number, median over the faces
    - `others`    mean absolute change of all other AUs from 0 to 5, over the change of this one; median over the
      faces; None if it does not rise
    - `monotone`  is each of `read` above the one before it?
    """
    levels, n = torch.arange(MAX_INTENSITY + 1), len(AU_NAMES)  # (6,)
    read: dict[str, list[Tensor]] = {"network": [], "true render": []}
    for chunk in tqdm(np.array_split(rows, max(1, len(rows) // batch_size)), desc="by numbers", disable=not progress):
        f_f, own = swapper.encode(render(plan, renderer, chunk, device))
        asked = plan.au[chunk].repeat(n, len(levels), 1, 1)  # (n, 6, B, n)
        for k in range(n):
            asked[k, :, :, k] = levels[:, None]
        found: dict[str, list[Tensor]] = {"network": [], "true render": []}
        for k in range(n):
            for au in asked[k]:  # (B, n)
                f_r = own.clone()
                f_r[:, k] = swapper.f_r_of(au.to(device))[:, k]
                found["network"].append(judge(swapper.generate(f_f, f_r).float()))
                true = replace(plan, subject=plan.subject[chunk], views=plan.views[chunk], au=au)
                found["true render"].append(judge(render(true, renderer, torch.arange(len(chunk)), device)))
        for name, values in found.items():
            read[name].append(torch.stack(values).cpu().double().unflatten(0, (n, len(levels))))  # (n, 6, B, n)
    tables = {}
    for name, parts in read.items():
        judged = torch.cat(parts, 2)  # (n, 6, N, n)
        table = {}
        for k, unit in enumerate(AU_NAMES):
            typical = judged[k, :, :, k].median(1).values  # (6,)
            change = judged[k, -1] - judged[k, 0]  # (N, n)
            share = (change.abs().sum(1) - change[:, k].abs()) / (n - 1) / change[:, k].clamp(min=0)
            table[unit] = {
                "read": [json_number(x) for x in typical.tolist()],
                "others": json_number(share.nan_to_num(torch.inf).median().item()),
                "monotone": bool((typical.diff() > 0).all()),
            }
        tables[name] = table
    return {"n_faces": len(rows), **tables}
