"""The measures, one function each. Statistics are float64; a NaN label is left out of its column; undefined is NaN.

``x``, ``y``, ``z`` are (N, K): N images, K action units; results have one entry per column, (K,).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import BaseCrossValidator, GroupKFold, StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from expr_lib.facs import PRESENT_AT

ROUNDING_DB = 10 * math.log10(12 * 255**2)
"""PSNR of rounding to 8 bits, 58.9 dB: a uniform error of one step has a mean square of 1/12."""


def _known(*columns: Tensor) -> tuple[Tensor, ...]:
    """The same (N, K) tensors in float64, a row of a column NaN in all of them where it is NaN in one."""
    shapes = {tuple(c.shape) for c in columns}
    if len(shapes) != 1 or columns[0].ndim != 2:
        raise ValueError(f"found shapes {', '.join(map(str, shapes))}, expected one shape (N, K) for all")
    missing = torch.stack([c.isnan() for c in columns]).any(0)
    return tuple(c.double().masked_fill(missing, torch.nan) for c in columns)


def _covariance(x: Tensor, y: Tensor) -> Tensor:
    """Population covariance of each column, (K,)."""
    return ((x - x.nanmean(0)) * (y - y.nanmean(0))).nanmean(0)


# -- does the face show the expression? ----------------------------------------------------------------------------


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Correlation ``cov(x, y) / sqrt(var(x) var(y))`` of each column, (K,); NaN where a column is constant."""
    x, y = _known(x, y)
    return _covariance(x, y) / (_covariance(x, x) * _covariance(y, y)).sqrt()


def icc31(x: Tensor, y: Tensor) -> Tensor:
    """Agreement of two raters up to a constant, in [-1, 1], of each column, (K,); NaN where both are constant.

    ``ICC(3,1) = (BMS - EMS) / (BMS + EMS)``, BMS and EMS the mean squares between targets and of the error in a two-way
    layout (mixed, consistency, single rater). For two raters ``BMS - EMS = 2 cov(x, y)`` and ``BMS + EMS = var(x) +
    var(y)``. Unlike a correlation, it falls when one rater's scale is narrower than the other's.
    Source: Shrout & Fleiss, *Intraclass correlations*, Psychological Bulletin 86, 1979, case 3.
    """
    x, y = _known(x, y)
    return 2 * _covariance(x, y) / (_covariance(x, x) + _covariance(y, y))


def f1(x: Tensor, y: Tensor) -> Tensor:
    """``F1 = 2 TP / (2 TP + FP + FN)`` of occurrence (intensity >= ``PRESENT_AT``) of each column, (K,), in [0, 1].

    ``x`` is judged, ``y`` is true. NaN where the AU is neither there nor judged to be there.
    """
    x, y = _known(x, y)
    judged, true = x >= PRESENT_AT, y >= PRESENT_AT  # NaN is neither
    return 2 * (judged & true).sum(0).double() / (judged.sum(0) + true.sum(0))


def partial_correlation(x: Tensor, y: Tensor, given: Tensor) -> Tensor:
    """Correlation of what a straight line in ``given`` does not explain of ``x`` and of ``y``, of each column, (K,).

    ``r_xy.z = (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2))``. With x = judge(swap), y = AUs of a, z = AUs of b:
    what is left of a's own expression. Source: Fisher, *The distribution of the partial correlation coefficient*, 1924.
    """
    x, y, z = _known(x, y, given)
    xy, xz, yz = pearson(x, y), pearson(x, z), pearson(y, z)
    rest = (1 - xz**2) * (1 - yz**2)
    return torch.where(rest > 1e-12, (xy - xz * yz) / rest.clamp(min=1e-12).sqrt(), torch.nan).clamp(-1, 1)


# -- is it the true answer? ----------------------------------------------------------------------------------------


def masked_l1(image: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference over the face, (B,), in [0, 2]; NaN where the mask is empty.

    ``image``, ``truth``: (B, 3, S, S) in [-1, 1]; ``mask``: (B, S, S) bool.
    """
    inside = mask[:, None].to(image.dtype)  # (B, 1, S, S)
    return ((image - truth).abs() * inside).sum((1, 2, 3)) / (3 * inside.sum((1, 2, 3)))


def transfer_score(d_swap: Tensor, d_self: Tensor, d_truth: Tensor) -> Tensor:
    """Share of the way from a's own expression to the true answer: 1 is perfect, 0 is no transfer; for each pair, (N,).

    ``(d(self(I^a), T) - d(İ^a, T)) / (d(self(I^a), T) - d(self(T), T))``, d = :func:`masked_l1`, T the true render,
    self the self-reconstruction: what reconstruction itself loses counts neither for nor against the transfer.
    Arguments (N,): ``d_swap = d(İ^a, T)``, ``d_self = d(self(I^a), T)``, ``d_truth = d(self(T), T)``. NaN where the two
    expressions look so alike that ``d_self <= d_truth``: there is no way to go.
    """
    return torch.where(d_self > d_truth, (d_self - d_swap) / (d_self - d_truth), torch.nan)


def total_transfer_score(d_swap: Tensor, d_self: Tensor, d_truth: Tensor) -> Tensor:
    """:func:`transfer_score` of a whole list: the same quotient of the means, a scalar.

    Not the mean of the quotients: a pair of near-equal expressions divides by almost nothing and drowns the others.
    """
    return transfer_score(d_swap.nanmean(), d_self.nanmean(), d_truth.nanmean())


def ssim(image: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each image, (B,), at most 1; both (B, 3, S, S) in [-1, 1]. Source: Wang et al. 2004."""
    image, truth = (x.contiguous(memory_format=torch.channels_last) for x in (image, truth))  # twice as fast
    values = structural_similarity_index_measure(image, truth, data_range=2.0, reduction="none")
    assert isinstance(values, Tensor)
    return values.reshape(len(image))


def psnr(image: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio ``10 log10(2^2 / mean square)`` of each image in dB, (B,); as in :func:`ssim`.

    At most ``ROUNDING_DB``, the noise of 8-bit pixels themselves: equal images would make every mean infinite.
    """
    values = peak_signal_noise_ratio(image, truth, data_range=2.0, reduction="none", dim=(1, 2, 3))
    return values.clamp(max=ROUNDING_DB)


def identity_kept(cosine: Tensor, threshold: float) -> Tensor:
    """Share of the swaps that the identity judge takes for a, a scalar; ``cosine`` (N,) of the embeddings of both."""
    return (cosine > threshold).double().mean()


def kid(x: Tensor, y: Tensor) -> Tensor:
    """Kernel distance of two sets of features (N, D) and (M, D), a scalar: about 0 for one distribution, else above.

    Unbiased ``MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean k(x_i, y_j)`` with
    ``k(u, v) = (u.v / D + 1)^3``; it may be slightly negative. The two sets must be drawn independently.
    Source: Binkowski et al., *Demystifying MMD GANs*, ICLR 2018.
    """
    return mmd2(*(polynomial_kernel(u, v) for u, v in ((x, x), (y, y), (x, y))))


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """``(x.y / D + 1)^3`` of all pairs: (N, D), (M, D) -> (N, M) float64."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def mmd2(xx: Tensor, yy: Tensor, xy: Tensor, weight_x: Tensor | None = None, weight_y: Tensor | None = None) -> Tensor:
    """The unbiased MMD^2 of :func:`kid` from its three kernel matrices, a scalar.

    ``weight_x`` (N,), ``weight_y`` (M,): how often each sample counts in a bootstrap; a sample never meets itself, also
    not its own copy, which would feign a distance.
    """
    w = xx.new_ones(len(xx)) if weight_x is None else weight_x.to(xx)
    v = yy.new_ones(len(yy)) if weight_y is None else weight_y.to(yy)

    def within(k: Tensor, w: Tensor) -> Tensor:
        return (w @ k @ w - (w**2 * k.diag()).sum()) / (w.sum() ** 2 - (w**2).sum())

    return within(xx, w) + within(yy, v) - 2 * (w @ xy @ v) / (w.sum() * v.sum())


# -- are the two features apart? -----------------------------------------------------------------------------------


def _kernel(features: Tensor) -> np.ndarray:
    """Similarity ``exp(-|u - v|^2 / D)`` of standardized features, all pairs: (N, ...) -> (N, N)."""
    x = StandardScaler().fit_transform(features.flatten(1).numpy())  # (N, D)
    return rbf_kernel(x, gamma=1 / x.shape[1])


def _probe(kernel: np.ndarray, label: np.ndarray, folds: BaseCrossValidator, group: np.ndarray | None) -> np.ndarray:
    """What a fresh kernel classifier reads, (N,): each label predicted by a fit that never saw that row."""
    svm = SVC(C=10.0, kernel="precomputed", class_weight="balanced")
    return cross_val_predict(svm, kernel, label, groups=group, cv=folds)


def probe_au(f_f: Tensor, au: Tensor, subject: np.ndarray, *, folds: int = 5) -> Tensor:
    """Presence of each AU as a fresh probe reads it from f_f (N, ...): 1, 0, or NaN where unknown, (N, n_aus).

    A support vector machine with a Gaussian kernel, so it also finds what no straight line does. Cross-validated over
    subjects: it reads people it has not met. An AU that fewer than ``folds`` subjects show, or lack, is NaN. A probe
    reads more the more images it gets: compare leaks at the same N.
    """
    kernel, read = _kernel(f_f), torch.full(au.shape, torch.nan, dtype=torch.float64)
    for j in range(au.shape[1]):
        known = torch.nonzero(~au[:, j].isnan())[:, 0].numpy()  # (M,)
        label, group = (au[known, j] >= PRESENT_AT).numpy(), subject[known]
        if min(len(np.unique(group[label])), len(np.unique(group[~label]))) >= folds:
            found = _probe(kernel[np.ix_(known, known)], label, GroupKFold(folds), group)
            read[known, j] = torch.from_numpy(found).double()
    return read


def leak_au(read: Tensor, au: Tensor) -> Tensor:
    """Balanced accuracy ``(TPR + TNR) / 2`` of what :func:`probe_au` read, mean over AUs: 0.5 is no leak, 1 is all.

    ``read``: (N, n_aus) of 1, 0, NaN; ``au``: (N, n_aus) intensities. A scalar, over the AUs with both classes.
    """
    read, au = _known(read, au)
    true = torch.where(au.isnan(), torch.nan, (au >= PRESENT_AT).double())
    recall = [torch.where(true == c, (read == c).double(), torch.nan).nanmean(0) for c in (0, 1)]  # 2 x (n_aus,)
    return ((recall[0] + recall[1]) / 2).nanmean()


def probe_subject(f_r: Tensor, subject: np.ndarray, *, folds: int = 5) -> np.ndarray:
    """The subject of each image as a fresh probe reads it from f_r (N, ...), cross-validated over images, (N,).

    -1 where a subject has fewer than ``folds`` images.
    """
    _, index, count = np.unique(subject, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(count[index] >= folds)
    read = np.full(len(subject), -1)
    if len(np.unique(subject[rows])) >= 2:
        cv = StratifiedKFold(folds, shuffle=True, random_state=0)
        read[rows] = _probe(_kernel(f_r[torch.from_numpy(rows)]), subject[rows], cv, None)
    return read


def leak_id(read: np.ndarray, subject: np.ndarray) -> Tensor:
    """What each image adds to the accuracy over chance of :func:`probe_subject`, (N,): the mean of it is ``leak_id``.

    ``mean_i [read_i = subject_i] * M / m_i``, M images of which m_i show the subject of i, is the mean recall times the
    number of subjects: 1 is no leak, however many images each has; the number of subjects is all. NaN where not read.
    """
    rows = read != -1
    _, index, count = np.unique(subject[rows], return_inverse=True, return_counts=True)
    share = np.full(len(subject), np.nan)
    share[rows] = (read == subject)[rows] * rows.sum() / count[index]
    return torch.from_numpy(share)


# -- how sure are we? ----------------------------------------------------------------------------------------------


def bootstrap(
    statistic: Callable[[Tensor], Tensor], cluster: np.ndarray, *, n_resamples: int = 1000, seed: int = 0,
    level: float = 0.95,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Percentile interval (low, high) of ``statistic(rows)``, shaped as the statistic, which gets rows (M,) int64 of N.

    ``cluster`` (N,): whole clusters are drawn with replacement, all rows of one at a time. We cluster by the subject
    whose face is drawn: swaps of one person share that person's texture, and with it how well generator and judges do;
    taking them for independent would promise too much. NaN where every resample is.
    Source: Field & Welsh, *Bootstrapping clustered data*, JRSS B 69, 2007.
    """
    order = np.argsort(cluster, kind="stable")
    _, start = np.unique(cluster[order], return_index=True)
    members = np.split(order, start[1:])
    drawn = np.random.default_rng(seed).integers(len(members), size=(n_resamples, len(members)))
    rows = (torch.from_numpy(np.concatenate([members[c] for c in draw])) for draw in drawn)
    values = torch.stack([torch.as_tensor(statistic(index), dtype=torch.float64) for index in rows])  # (R, ...)
    low, high = values.nanquantile(torch.tensor([(1 - level) / 2, (1 + level) / 2]).double(), dim=0)
    return low, high
