"""All losses, one function for each equation, computed in float32.

`x` are real images, `k` runs over action units, `c` over classes. A missing label (NaN intensity, class -1) has weight
0, and a batch without labels gives a loss of exactly 0. Each docstring names the source of the equation:
*paper, abstract* (Shao et al., TIP 2021), *sister code* (ADLD, by the same authors, public), or *our choice*.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from expr_lib import processes
from expr_lib.facs import MAX_INTENSITY, PRESENT_AT


def weighted_mean(value: Tensor, weight: Tensor) -> Tensor:
    """sum(w v) / sum(w), or 0 if every weight is 0.

    The sum of weights is averaged over the processes, which have different labels. The mean of their results is then
    the weighted mean over the whole batch, which the mean of separate weighted means would not be.
    """
    weight = weight.expand_as(value)
    return (weight * value).sum() / processes.mean(weight.sum()).clamp_min(1e-8)


# ---------------------------------------------------------------------------------------------- action units


def au_loss(logit: Tensor, au: Tensor, weight: Tensor | None = None) -> Tensor:
    """L_AU = mean_k w_k KL(y_k || p_k),  y = au / 5,  p = sigmoid(logit):  the intensity of each AU.

    The KL divergence of two Bernoulli distributions is 0 only if 5 p = au, and its derivative by the logit is p - y,
    unlike that of a squared error behind a sigmoid. logit (B, n); au (B, n) in [0, 5], NaN = missing; weight (n,).
    Source: the loss is the sister code's cross-entropy with a balanced weight for each AU; soft targets are our choice,
    since our labels are intensities.
    """
    known = ~au.isnan()
    y = au.nan_to_num().float() / MAX_INTENSITY
    entropy = -(torch.xlogy(y, y) + torch.xlogy(1 - y, 1 - y))
    kl = F.binary_cross_entropy_with_logits(logit.float(), y, reduction="none") - entropy  # (B, n)
    return weighted_mean(kl, known * (1.0 if weight is None else weight))


def au_weights(au: Tensor) -> Tensor:
    """w_k ~ 1 / (share of images in which AU k is present), mean 1: rare AUs count as much as common ones.

    au (N, n) of the whole training set -> (n,). Shares under 2 % count as 2 %. Source: sister code.
    """
    present = (au >= PRESENT_AT).float().sum(0) / (~au.isnan()).sum(0).clamp_min(1)
    weight = 1 / present.clamp_min(0.02)
    return weight / weight.mean()


# ---------------------------------------------------------------------------------- multi-class adversary


def class_weights(cls: Tensor, n_classes: int) -> Tensor:
    """w_kc ~ 1 / (how often AU k has class c), mean 1 over the labelled images of AU k; 0 for a class never seen.

    cls (N, n) int64 of the whole training set, -1 = missing -> (n, L). Shares under 1 % count as 1 %. Our choice: with
    these weights, the best constant answer of a discriminator is 1/C for each class, the target of the encoder.
    """
    count = F.one_hot(cls.clamp_min(0), n_classes).mul((cls >= 0).unsqueeze(-1)).sum(0).float()  # (n, L)
    share = count / count.sum(1, keepdim=True).clamp_min(1)
    classes = (count > 0).sum(1, keepdim=True).clamp_min(1)
    return (count > 0) / (classes * share.clamp_min(0.01))


def class_discriminator_loss(score: Tensor, cls: Tensor, weight: Tensor) -> Tensor:
    """Discriminator:  L = mean_k w sum_c (D(f)_kc - [c = c_k])^2,  the scores regressed onto the one-hot class.

    score (B, n, L); cls (B, n) int64, -1 = missing; weight (n, L), 0 marks a class that AU k does not have.
    Source: sister code (its multi-class adversary, squared error onto the one-hot class).
    """
    one_hot = F.one_hot(cls.clamp_min(0), score.shape[-1]).float()
    error = ((score - one_hot).square() * (weight > 0)).sum(-1)  # (B, n)
    return weighted_mean(error, weight_of(cls, weight))


def class_confusion_loss(score: Tensor, cls: Tensor, weight: Tensor) -> Tensor:
    """Encoder:  L = mean_k w sum_c (D(f)_kc - 1/C_k)^2,  so that the feature predicts every class alike.

    Shapes as in `class_discriminator_loss`; C_k counts the classes that AU k has. Source: "multi-class adversarial
    training" in the paper's abstract, the uniform target in the sister code.
    """
    has = (weight > 0).float()  # (n, L)
    uniform = has / has.sum(-1, keepdim=True).clamp_min(1)
    error = ((score - uniform).square() * has).sum(-1)  # (B, n)
    return weighted_mean(error, weight_of(cls, weight))


def no_confusion_loss(score: Tensor, cls: Tensor, weight: Tensor) -> Tensor:
    """L = 0, no adversary. The discriminator still learns, so its loss shows what the feature contains."""
    return torch.zeros((), device=score.device)


def reversal_loss(score: Tensor, cls: Tensor, weight: Tensor) -> Tensor:
    """L = -L_D: gradient reversal (Ganin & Lempitsky, ICML 2015); its lambda is the weight of the loss.

    It has no lower bound: a score far from the right class still identifies the class, by excluding it.
    """
    return -class_discriminator_loss(score, cls, weight)


def inverted_labels_loss(score: Tensor, cls: Tensor, weight: Tensor) -> Tensor:
    """L = mean_k w sum_c (D(f)_kc - t_kc)^2,  t: absent for what is present, any present class for what is absent.

    With two classes these are the inverted labels of ADDA (Tzeng et al., CVPR 2017); for more, our extension. Perfectly
    inverted scores contain as much information as the right ones; the uniform target avoids this.
    """
    has = (weight > 0).float()  # (n, L)
    absent = F.one_hot(torch.zeros_like(cls), score.shape[-1]).float()  # (B, n, L)
    present = has * (1 - absent)
    present = present / present.sum(-1, keepdim=True).clamp_min(1)
    target = torch.where((cls > 0).unsqueeze(-1), absent, present)
    return weighted_mean(((score - target).square() * has).sum(-1), weight_of(cls, weight))


def log_probability(score: Tensor, weight: Tensor) -> Tensor:
    """log softmax over the classes that AU k has: score (B, n, L), weight (n, L) -> (B, n, L)."""
    return score.masked_fill(weight == 0, -1e4).log_softmax(-1)


def cross_entropy_discriminator_loss(score: Tensor, cls: Tensor, weight: Tensor) -> Tensor:
    """Discriminator of `max_entropy_loss`:  the cross-entropy L = -mean_k w log p_kc,  c = c_k,  p = softmax D(f)."""
    log_p = log_probability(score, weight).gather(-1, cls.clamp_min(0).unsqueeze(-1)).squeeze(-1)  # (B, n)
    return weighted_mean(-log_p, weight_of(cls, weight))


def max_entropy_loss(score: Tensor, cls: Tensor, weight: Tensor) -> Tensor:
    """L = mean_k w (log C_k + sum_c p_kc log p_kc),  p = softmax D(f):  the entropy below its maximum.

    0 if all classes are equally likely, log C_k if one is certain. Source: Springenberg, ICLR 2016, where an adversary
    maximizes the entropy of a classifier.
    """
    log_p = log_probability(score, weight)
    doubt = -(log_p.exp() * log_p).sum(-1)  # (B, n)
    return weighted_mean((weight > 0).sum(-1).clamp_min(1).log() - doubt, weight_of(cls, weight))


ADVERSARIES = {
    "uniform": (class_discriminator_loss, class_confusion_loss),
    "none": (class_discriminator_loss, no_confusion_loss),
    "reversal": (class_discriminator_loss, reversal_loss),
    "inverted": (class_discriminator_loss, inverted_labels_loss),
    "entropy": (cross_entropy_discriminator_loss, max_entropy_loss),
}
"""Loss of the discriminator of f_f and of the encoder: the paper's, then those that the course compares."""


def weight_of(cls: Tensor, weight: Tensor) -> Tensor:
    """The weight of each label: cls (B, n), weight (n, L) -> (B, n); 0 for a missing label."""
    rows = weight.expand(len(cls), -1, -1).gather(2, cls.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return rows * (cls >= 0)


# ------------------------------------------------------------------------------------------ reconstruction


def reconstruction_loss(image: Tensor, target: Tensor) -> Tensor:
    """L = mean |image - target|,  for the self-reconstruction G(f_f, f_r) and the cross-cycle I-hat; the target is I.

    Source: sister code, both terms and L1; the paper's abstract names the self-reconstructed images.
    """
    return F.l1_loss(image.float(), target.float())


def agreement_loss(feature: Tensor, target: Tensor) -> Tensor:
    """L = mean (feature - sg[target])^2,  for f_f of the swap and of a, and f_r of the swap and of b. Our choice."""
    return F.mse_loss(feature.float(), target.detach().float())


# ---------------------------------------------------------------------------------------------------- takes


def difference_weight(image: Tensor, other: Tensor) -> Tensor:
    """w = 1 + 8 |I^1 - I^2| / mean |I^1 - I^2|, blurred, mean 1: larger where two images of a take differ.

    Most of a face does not move with its expression and would dominate a plain L1. Both images (B, 3, S, S)
    -> (B, 1, S, S); the blur is a mean over 5 x 5 pixels. Our choice: training was five to ten times as fast as with a
    plain L1.
    """
    d = F.avg_pool2d((image - other).abs().mean(1, keepdim=True), 5, 1, 2, count_include_pad=False)  # (B, 1, S, S)
    w = 1 + 8 * d / (d.mean((1, 2, 3), keepdim=True) + 1e-3)
    return w / w.mean((1, 2, 3), keepdim=True)


def take_loss(image: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """L = mean over S, S/2, S/4 of mean w |image - target|,  since the true answer inside a take is known.

    The target of G(f_f^1, f_r^2) is image 2 of the take, that of the face at rest is the image at rest. The coarser
    scales give a flow a gradient if its target is more than a pixel away. image, target (B, 3, S, S), weight
    (B, 1, S, S), S a multiple of 4; an image whose weight is 0 everywhere does not count. Our choice, after
    the multi-scale reconstruction losses of First Order Motion Model (Siarohin et al., NeurIPS 2019).
    """
    image, total = image.float(), torch.zeros((), device=image.device)
    for scale in range(3):
        if scale:
            image, target, weight = (F.avg_pool2d(x, 2) for x in (image, target, weight))
        total = total + weighted_mean((image - target).abs(), weight)
    return total / 3


# ------------------------------------------------------------------------------------------- image realism


def lsgan_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator:  L = 1/2 [mean (D(real) - 1)^2 + mean D(fake)^2]  (LSGAN, Mao et al., 2017).

    Patch scores of any shape. Used twice: realism (real images against synthesized ones) and swap consistency
    (self-reconstructed images against synthesized ones). Source: swap consistency is in the paper's abstract; realism
    and least squares are our choice.
    """
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def lsgan_g_loss(fake: Tensor) -> Tensor:
    """Generator:  L = mean (D(fake) - 1)^2,  for realism and for swap consistency, as in `lsgan_d_loss`."""
    return (fake - 1).square().mean()
