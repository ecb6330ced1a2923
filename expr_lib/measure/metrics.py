"""The measures, one function each. Statistics are float64 and NaN if undefined; NaN labels are ignored.

`x`, `y`, `z` are (N, K): N images and K action units; results have one entry per column, (K,).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from expr_lib.facs import PRESENT_AT

ROUNDING_DB = 10 * math.log10(12 * 255**2)
"""PSNR of rounding to 8 bits, 58.9 dB, since a uniform error of one step has a mean square of 1/12."""


def _known(*columns: Tensor) -> tuple[Tensor, ...]:
    """The same (N, K) tensors in float64, with an entry NaN in all of them if it is NaN in one."""
    shapes = {tuple(c.shape) for c in columns}
    if len(shapes) != 1 or columns[0].ndim != 2:
        raise ValueError(f"found shapes {', '.join(map(str, shapes))}, expected one shape (N, K) for all")
    missing = torch.stack([c.isnan() for c in columns]).any(0)
    return tuple(c.double().masked_fill(missing, torch.nan) for c in columns)


def _covariance(x: Tensor, y: Tensor) -> Tensor:
    """Population covariance of each column, (K,)."""
    return ((x - x.nanmean(0)) * (y - y.nanmean(0))).nanmean(0)


# -- expression ------------------------------------------------------------------------------------------------------


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Correlation `cov(x, y) / sqrt(var(x) var(y))` of each column, (K,); NaN if a column is constant."""
    x, y = _known(x, y)
    return _covariance(x, y) / (_covariance(x, x) * _covariance(y, y)).sqrt()


def icc31(x: Tensor, y: Tensor) -> Tensor:
    """Agreement of two raters up to a constant, in [-1, 1], of each column, (K,); NaN if both are constant.

    `ICC(3,1) = (BMS - EMS) / (BMS + EMS)`, BMS and EMS the mean squares between targets and of the error in a two-way
    layout (mixed, consistency, single rater). For two raters `BMS - EMS = 2 cov(x, y)` and `BMS + EMS = var(x) +
    var(y)`. Unlike a correlation, it decreases if the scale of one rater is narrower than the other.
    Source: Shrout & Fleiss, *Intraclass correlations*, Psychological Bulletin 86, 1979, case 3.
    """
    x, y = _known(x, y)
    return 2 * _covariance(x, y) / (_covariance(x, x) + _covariance(y, y))


def f1(x: Tensor, y: Tensor) -> Tensor:
    """`F1 = 2 TP / (2 TP + FP + FN)` of occurrence (intensity >= `PRESENT_AT`) of each column, (K,), in [0, 1].

    `x` is predicted, `y` is true. NaN if the AU is present in neither.
    """
    x, y = _known(x, y)
    judged, true = x >= PRESENT_AT, y >= PRESENT_AT  # NaN is neither
    return 2 * (judged & true).sum(0).double() / (judged.sum(0) + true.sum(0))


def partial_correlation(x: Tensor, y: Tensor, given: Tensor) -> Tensor:
    """Correlation of the residuals of `x` and `y` after linear regression on `given`, of each column, (K,).

    `r_xy.z = (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2))`. With x = judge(swap), y = AUs of a, z = AUs of b,
    it is the remainder of the own expression of a. Source: Fisher, *The distribution of the partial correlation
    coefficient*, 1924.
    """
    x, y, z = _known(x, y, given)
    xy, xz, yz = pearson(x, y), pearson(x, z), pearson(y, z)
    rest = (1 - xz**2) * (1 - yz**2)
    return torch.where(rest > 1e-12, (xy - xz * yz) / rest.clamp(min=1e-12).sqrt(), torch.nan).clamp(-1, 1)


# -- distance to the true answer -------------------------------------------------------------------------------------


def masked_l1(image: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference over the face, (B,), in [0, 2]; NaN if the mask is empty.

    `image`, `truth`: (B, 3, S, S) in [-1, 1]; `mask`: (B, S, S) bool.
    """
    inside = mask[:, None].to(image.dtype)  # (B, 1, S, S)
    return ((image - truth).abs() * inside).sum((1, 2, 3)) / (3 * inside.sum((1, 2, 3)))


def gain(d_swap: Tensor, d_copy: Tensor) -> Tensor:
    """Share of the error of the unchanged input that the swap removes, over a whole list, a scalar.

    `1 - sum d(İ^a, T) / sum d(I^a, T)`, d = `masked_l1`, T the true render. 1 is perfect, 0 is a copy of the
    input, and below 0 the swap is worse than the input. Arguments (N,): `d_swap = d(İ^a, T)`,
    `d_copy = d(I^a, T)`; swaps that are NaN in one of them are ignored. NaN if no expressions differ. Our choice.
    """
    known = ~(d_swap.isnan() | d_copy.isnan())
    error, nothing = d_swap[known].sum(), d_copy[known].sum()
    return torch.where(nothing > 0, 1 - error / nothing, torch.nan)


def nearer(d_swap: Tensor, d_copy: Tensor) -> Tensor:
    """Share of the swaps that are nearer to the true answer than the input is, a scalar; arguments of `gain`."""
    return (d_swap < d_copy).double().mean()


def rest_left(read_rest: Tensor, read_input: Tensor) -> Tensor:
    """Share of the expression left in the face at rest, a scalar: 0 is none, 1 is all, as in a copy of the input.

    `sum judge(T) / sum judge(I)` over N images and K action units, both (N, K) intensities in [0, 5] read by the same
    judge. A judge reads some expression in every face, so the true face at rest does not score 0 either and should be
    shown for comparison. NaN if nothing is read in the inputs. Our choice.
    """
    total = read_input.sum()
    return torch.where(total > 0, read_rest.sum() / total, torch.nan)


def transfer_score(d_swap: Tensor, d_self: Tensor, d_truth: Tensor) -> Tensor:
    """Share of the change from the expression of a to the true answer, per pair, (N,): 1 is perfect, 0 is no transfer.

    `(d(self(I^a), T) - d(İ^a, T)) / (d(self(I^a), T) - d(self(T), T))`, d = `masked_l1`, T the true render,
    self the self-reconstruction, so that errors of reconstruction do not count.
    Arguments (N,): `d_swap = d(İ^a, T)`, `d_self = d(self(I^a), T)`, `d_truth = d(self(T), T)`. NaN if the two
    expressions look so similar that `d_self <= d_truth`.
    """
    return torch.where(d_self > d_truth, (d_self - d_swap) / (d_self - d_truth), torch.nan)


def total_transfer_score(d_swap: Tensor, d_self: Tensor, d_truth: Tensor) -> Tensor:
    """`transfer_score` of a whole list: the same quotient of the means, a scalar.

    The mean of the quotients would be dominated by pairs of similar expressions, whose denominators are almost 0.
    """
    return transfer_score(d_swap.nanmean(), d_self.nanmean(), d_truth.nanmean())


def ssim(image: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each image, (B,), at most 1; both (B, 3, S, S) in [-1, 1]. Source: Wang et al. 2004."""
    image, truth = (x.contiguous(memory_format=torch.channels_last) for x in (image, truth))  # twice as fast
    values = structural_similarity_index_measure(image, truth, data_range=2.0, reduction="none")
    assert isinstance(values, Tensor)
    return values.reshape(len(image))


def psnr(image: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio `10 log10(2^2 / mean square)` of each image in dB, (B,); as in `ssim`.

    At most `ROUNDING_DB`, the noise of 8-bit pixels, because one pair of equal images would make a mean infinite.
    """
    values = peak_signal_noise_ratio(image, truth, data_range=2.0, reduction="none", dim=(1, 2, 3))
    return values.clamp(max=ROUNDING_DB)


def laplacian_variance(image: Tensor, mask: Tensor) -> Tensor:
    """Variance of the Laplacian of the gray image inside the face, (B,): how much of the finest detail there is.

    `image`: (B, 3, S, S) in [-1, 1]; `mask`: (B, S, S) bool; NaN if the mask is empty. The Laplacian is the sum of
    the four neighbours less four times the pixel. Source: Pech-Pacheco et al., *Diatom autofocusing in brightfield
    microscopy*, ICPR 2000.
    """
    gray = F.pad(image.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")  # (B, 1, S + 2, S + 2)
    kernel = gray.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    laplacian = F.conv2d(gray, kernel)[:, 0].masked_fill(~mask, torch.nan).flatten(1)  # (B, S * S)
    return (laplacian - laplacian.nanmean(1, keepdim=True)).square().nanmean(1)


def sharpness(image: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """`laplacian_variance` of the image as a share of that of the truth, (B,): 1 is as sharp, below 1 is softer.

    NaN if the truth has no detail at all. Our choice.
    """
    own, true = laplacian_variance(image, mask), laplacian_variance(truth, mask)
    return torch.where(true > 0, own / true, torch.nan)


def identity_kept(cosine: Tensor, threshold: float) -> Tensor:
    """Share of the swaps that the identity judge accepts as a, a scalar; `cosine` (N,) of the two embeddings."""
    return (cosine > threshold).double().mean()


def kid(x: Tensor, y: Tensor) -> Tensor:
    """Kernel distance of two sets of features (N, D) and (M, D), a scalar; about 0 for equal distributions.

    Unbiased `MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean k(x_i, y_j)` with
    `k(u, v) = (u.v / D + 1)^3`; it may be slightly negative. The two sets must be drawn independently.
    Source: Binkowski et al., *Demystifying MMD GANs*, ICLR 2018.
    """
    return mmd2(polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y))


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """`(x.y / D + 1)^3` of all pairs: (N, D), (M, D) -> (N, M) float64."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def mmd2(
    xx: Tensor, yy: Tensor, xy: Tensor, weight_x: Tensor | None = None, weight_y: Tensor | None = None,
    counts: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """The unbiased MMD^2 of `kid` from its three kernel matrices, a scalar.

    `weight_x` (N,), `weight_y` (M,): how often each sample counts in a bootstrap. Pairs of a sample and its copy
    are excluded, as they would bias the result. `counts`: how many pairs each entry sums, by `people_kernels`.
    """
    w = xx.new_ones(len(xx)) if weight_x is None else weight_x.to(xx)
    v = yy.new_ones(len(yy)) if weight_y is None else weight_y.to(yy)
    if counts is None:
        xx, yy = (k - k.diag().diag() for k in (xx, yy))
        counts = 1 - torch.eye(len(xx)).to(xx), 1 - torch.eye(len(yy)).to(xx), torch.ones_like(xy)
    within_x, within_y, across = (
        (p @ k @ q) / (p @ n @ q) for p, k, n, q in zip((w, v, w), (xx, yy, xy), counts, (w, v, v), strict=True)
    )
    return within_x + within_y - 2 * across


def people_kernels(
    x: Tensor, y: Tensor, swapped: Tensor, shown_x: Tensor, shown_y: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Kernel matrices xx, yy, xy for `mmd2`, summed over the images of each person, and their `counts`; each (P, P).

    `x`, `y` (N, D): features of N answers and of their true answers. `swapped` (N, 2) int64: the two people of each
    swap, 0 to P - 1; `shown_x`, `shown_y` (N,): the person in each picture. Only pairs of swaps that have no person in
    common count, in all three matrices. Their images are independent, so `mmd2` is unbiased, and in a bootstrap over
    people too: if two images of one person counted, a person who is drawn twice would bring four times as many pairs
    of such images and raise `mmd2`. The interval is about right if the sets differ, and too wide if they do not
    (Arcones & Gine, *On the bootstrap of U and V statistics*, Annals of Statistics 20, 1992).
    """
    apart = (swapped[:, None, :, None] != swapped[None, :, None, :]).all(-1).all(-1).double()  # (N, N)
    n_people = int(swapped.max()) + 1
    of_x, of_y = (F.one_hot(shown, n_people).double() for shown in (shown_x, shown_y))  # (N, P)
    pairs = (x, x, of_x, of_x), (y, y, of_y, of_y), (x, y, of_x, of_y)
    xx, yy, xy = (p.T @ (polynomial_kernel(u, v) * apart) @ q for u, v, p, q in pairs)  # (P, P)
    n_xx, n_yy, n_xy = (p.T @ apart @ q for _, _, p, q in pairs)  # (P, P)
    return (xx, yy, xy), (n_xx, n_yy, n_xy)


# -- disentanglement -------------------------------------------------------------------------------------------------


def balanced_accuracy(read: Tensor, au: Tensor) -> Tensor:
    """`(TPR + TNR) / 2` of the predictions of a probe, for each AU, (n_aus,): 0.5 is chance, 1 is perfect.

    `read`: (N, n_aus) of 1 (present), 0 or NaN, as by `probes.probe_au`; `au`: (N, n_aus) intensities. NaN for an
    AU that is present in all images or in none.
    """
    read, au = _known(read, au)
    true = torch.where(au.isnan(), torch.nan, (au >= PRESENT_AT).double())
    recall = [torch.where(true == c, (read == c).double(), torch.nan).nanmean(0) for c in (0, 1)]  # 2 x (n_aus,)
    return (recall[0] + recall[1]) / 2


def leak_au(read: Tensor, au: Tensor) -> Tensor:
    """Mean of `balanced_accuracy` over the AUs with both classes, a scalar: 0.5 is no leak, 1 is all."""
    return balanced_accuracy(read, au).nanmean()


def leak_id(read: np.ndarray, subject: np.ndarray) -> Tensor:
    """Contribution of each image to the accuracy of a probe relative to chance, (N,); their mean is `leak_id`.

    `mean_i [read_i = subject_i] * M / m_i`, M images of which m_i show the subject of i, is the mean recall times the
    number of subjects: 1 is no leak, for any number of images per subject; the number of subjects is the maximum. NaN
    for images without a prediction (-1). See `probes.probe_subject`.
    """
    rows = read != -1
    _, index, count = np.unique(subject[rows], return_inverse=True, return_counts=True)
    share = np.full(len(subject), np.nan)
    share[rows] = (read == subject)[rows] * rows.sum() / count[index]
    return torch.from_numpy(share)


# -- intervals -------------------------------------------------------------------------------------------------------


def bootstrap(
    statistic: Callable[[Tensor], Tensor], cluster: np.ndarray, *, n_resamples: int = 1000, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """95 % percentile interval (low, high) of `statistic(rows)`, each with the shape of the statistic; rows (M,) int64.

    `cluster` (N,): clusters are drawn with replacement, with all their rows. We cluster by the subject whose face is
    shown, because swaps of one person depend on each other; treated as independent, they would give intervals that are
    too narrow. NaN if every resample is NaN.
    Source: Field & Welsh, *Bootstrapping clustered data*, JRSS B 69, 2007.
    """
    order = np.argsort(cluster, kind="stable")
    _, start = np.unique(cluster[order], return_index=True)
    members = np.split(order, start[1:])
    drawn = np.random.default_rng(seed).integers(len(members), size=(n_resamples, len(members)))
    rows = (torch.from_numpy(np.concatenate([members[c] for c in draw])) for draw in drawn)
    values = torch.stack([torch.as_tensor(statistic(index), dtype=torch.float64) for index in rows])  # (R, ...)
    low, high = values.nanquantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    return low, high


def estimates(
    statistic: Callable[[Tensor], Tensor], cluster: np.ndarray, *, n_resamples: int = 1000
) -> list[dict[str, float | None]]:
    """Each entry of `statistic(all rows)` with its `bootstrap` interval: `{"value", "low", "high"}`.

    Rounded, with None for undefined values, since JSON has no NaN and no infinity.
    """
    value = torch.as_tensor(statistic(torch.arange(len(cluster))), dtype=torch.float64)
    columns = (value, *bootstrap(statistic, cluster, n_resamples=n_resamples))
    return [
        dict(zip(("value", "low", "high"), map(json_number, row), strict=True))
        for row in zip(*(column.flatten().tolist() for column in columns), strict=True)
    ]


def json_number(x: float) -> float | None:
    """Round to six decimals for JSON; None if not finite."""
    return round(float(x), 6) if math.isfinite(x) else None
