"""One training step as in the paper: both passes, an update of the discriminators, an update of E and DG."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from tyro.conf import arg

from expr_lib import model, processes
from expr_lib.blocks import ModelConfig
from expr_lib.datasets import Pairs, to_float
from expr_lib.errors import MAX_SEED, check_range
from expr_lib.losses import (
    ADVERSARIES,
    agreement_loss,
    au_loss,
    class_confusion_loss,
    class_discriminator_loss,
    lsgan_d_loss,
    lsgan_g_loss,
    reconstruction_loss,
)
from expr_lib.model import Swapper, au_classes
from expr_lib.moving import Free, as_map, twice


@dataclass(frozen=True)
class Weights:
    """Weight of each loss of E and DG. ADLD, by the same authors, has AU 1, adversary 1.2, cross-cycle 40, self 3."""

    au: float = 10.0  # AUs of real images
    hide_au: float = 8.0  # f_f must not contain the AU classes
    hide_subject: float = 0.1  # f_r must not contain the subject
    self_: Annotated[float, arg(name="self")] = 40.0  # self-reconstruction, L1
    cycle: float = 60.0  # cross-cycle, L1
    realism: float = 1.0  # swaps look like real images
    swap: float = 1.0  # swap consistency
    guide: float = 3.0  # the frozen AU branch must read the AUs of b from the swap
    agree_f: float = 0.5  # the swap keeps a's f_f
    agree_r: float = 3.0  # the swap has b's f_r

    def __post_init__(self) -> None:
        check_range(self, **dict.fromkeys(vars(self), (0, 1e6)))


@dataclass(frozen=True)
class TakeWeights:
    """Weight of each loss inside takes, see `take_step.py`; a loss with weight 0 is not computed."""

    au: float = 5.0  # AUs of real images
    take: float = 60.0  # the other image of the take, or the image itself
    rest: float = 20.0  # T is the image of the take at rest
    guide: float = 2.0  # the frozen AU branch must read the AUs of the source from the result
    cycle: float = 0.0  # across people: cross-cycle, L1
    hide_au: float = 0.0  # f_f must not contain the AU classes
    hide_subject: float = 0.0  # f_r must not contain the subject
    realism: float = 0.0  # across people: swaps look like real images
    swap: float = 0.0  # across people: swap consistency

    def __post_init__(self) -> None:
        check_range(self, **dict.fromkeys(vars(self), (0, 1e6)))


@dataclass(frozen=True)
class TrainConfig:
    """Everything that defines a run."""

    supervision: Literal["auto", "takes", "unpaired"] = "auto"  # auto: takes if the data have them, else unpaired
    generator: Literal["auto", "drawn", "moved"] = "auto"  # auto: moved with takes, else drawn, as in the paper
    steps: int = 17_000  # optimizer steps in total, the warm-up included
    warmup_steps: int = 5_000  # of the AU branch alone, which learns slowly inside a GAN
    warmup_batch_size: int = 16  # pairs, so twice as many images; batch norm needs large batches
    batch_size: int = 8  # pairs; several processes share them
    warmup_lr: float = 2e-3  # of the AU branch alone, falling to lr
    lr: float = 8e-4  # of E and DG
    take_lr: float = 4e-4  # of E and DG inside takes, with beta1 0.9 instead of 0.5, since there is no adversary
    muon: bool = True  # inside takes, the convolutions of the movers are updated by Muon, see `muon.py`; else by Adam
    lr_d: float = 3e-4  # discriminators
    cooldown: float = 0.3  # share of the steps over which all learning rates fall to 0 at the end
    feature_d_steps: int = 2  # updates of D_f and D_r per step; they must keep up with the encoder
    # loss that removes the AUs from f_f
    adversary: Literal["uniform", "none", "reversal", "inverted", "entropy"] = "uniform"
    detach_f_r: bool = True  # no gradient of the reconstruction in f_r, or f_r would learn identity
    detach_swap: bool = True  # no gradient of the cross-cycle in the first pass, see `both_passes`
    consistency: Literal["self", "cycle"] = "self"  # the self-reconstruction in swap consistency: G(f_f, f_r) or I-hat
    ema: float = 0.999  # decay of the averaged weights, which are used after training
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 if the hardware multiplies it, else fp32
    device: Literal["auto", "cpu"] = "auto"  # auto: the accelerator (CUDA, MPS) if there is one
    compile: bool = False  # torch.compile of E, G and D; takes minutes, so for long runs on a GPU
    seed: int = 0  # of the weights, the order of the images and the noise
    log_every: int = 20  # steps between two rows of log.csv
    sample_every: int = 500  # steps between two sample grids
    save_every: int = 500  # steps between two checkpoints
    n_samples: int = 8  # pairs in each sample grid
    weights: Weights = field(default_factory=Weights)
    take_weights: TakeWeights = field(default_factory=TakeWeights)
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        often, pairs, rate = (1, 10**9), (1, 65_536), (1e-9, 1)
        check_range(
            self, steps=often, warmup_steps=(0, 10**9), warmup_batch_size=pairs, batch_size=pairs, warmup_lr=rate,
            lr=rate, take_lr=rate, lr_d=rate, cooldown=(0, 1), feature_d_steps=(1, 100), ema=(0, 0.999_999),
            seed=(0, MAX_SEED), log_every=often, sample_every=often, save_every=often, n_samples=(1, 1000),
        )  # fmt: skip


# ------------------------------------------------------------------------------------------ the step, as in the paper


@dataclass
class Nets:
    """All networks, their optimizers, weights of the losses from the label statistics, and the accelerator."""

    swapper: Swapper  # E and DG
    ema: Swapper  # its moving average
    D: model.D
    D_f: model.D_f
    D_r: model.D_r
    opt_G: torch.optim.Optimizer
    opt_D: torch.optim.Optimizer
    opt_f: torch.optim.Optimizer
    au_weight: Tensor  # (n,)
    class_weight: Tensor  # (n, L)
    subject_weight: Tensor  # (1, n_subjects)
    accelerator: Accelerator  # device, precision, processes


@dataclass
class Batch:
    """A batch of pairs: all a, then all b, so that rolling by half gives every image its partner."""

    x: Tensor  # (2B, 3, S, S) in [-1, 1]
    au: Tensor  # (2B, n) in [0, 5], NaN = missing
    cls: Tensor  # (2B, n) AU classes, -1 = missing
    subject: Tensor  # (2B, 1) index among the training subjects
    rest: Tensor | None = None  # (2B, 3, S, S) inside takes: the person at rest, in the same view
    has_rest: Tensor | None = None  # (2B, 1, 1, 1) 1 if the take has such an image, else 0


@dataclass
class Passes:
    """The results of both passes, for a and b at once."""

    f_f: Free  # (2B, C, S/4, S/4), or the faces at rest
    f_r: Tensor  # (2B, n, d)
    self_: Tensor  # (2B, 3, S, S)  G(f_f^a, f_r^a): should be I^a
    swap: Tensor  # (2B, 3, S, S)  İ^a = G(f_f^a, f_r^b): a with the expression of b
    f_f_swap: Free  # E, DG of İ^a
    cycle: Tensor  # (2B, 3, S, S)  Î^a, swapped back: should be I^a again


def batch_of(pairs: Pairs, subjects: Tensor, config: TrainConfig) -> Batch:
    """Pairs -> Batch, or this process's part of it, with every image mirrored or not at random.

    This assumes AUs on both sides of the face. The images of one take are mirrored together.
    """
    x = to_float(processes.part(pairs.image))  # (2B, 3, S, S)
    coin = processes.draw(torch.rand, len(x), 1, 1, 1, device=x.device) < 0.5
    if pairs.rest is not None:
        coin[len(x) // 2 :] = coin[: len(x) // 2]

    def mirrored(image: Tensor) -> Tensor:
        return torch.where(coin, image.flip(-1), image).contiguous(memory_format=torch.channels_last)

    au, index = processes.part(pairs.au), torch.searchsorted(subjects, processes.part(pairs.subject))
    batch = Batch(mirrored(x), au, au_classes(au, config.model.au_levels), index[:, None])
    if pairs.rest is not None and pairs.has_rest is not None:
        batch.rest = mirrored(to_float(processes.part(pairs.rest)))
        batch.has_rest = processes.part(pairs.has_rest).float()[:, None, None, None]
    return batch


def partner(t: Tensor) -> Tensor:
    """(a, b) -> (b, a)."""
    return t.roll(len(t) // 2, 0)


def both_passes(swapper: Swapper, x: Tensor, detach_f_r: bool = True, detach_swap: bool = True) -> Passes:
    """Encode and swap, then encode the swapped images and swap back.

    The reason for `detach_swap`: let f_r carry a share m of the expression, and f_f the rest. The swap then shows m of
    the expression of b and 1 - m of that of a, and the cross-cycle misses I^a by m (1 - m). If gradients reach both
    passes and m < 1/2, training reduces this error by m -> 0, so that the swap is a copy of its input. If they reach
    the second pass only, it can only reduce 1 - m. Our choice.
    """
    f_f, f_r = swapper.encode(x)
    given = f_r.detach() if detach_f_r else f_r
    n = len(x)
    self_, swap = swapper.generate(twice(f_f), torch.cat([given, partner(given)])).split(n)
    f_f_swap, f_r_swap = swapper.encode(swap.detach() if detach_swap else swap)
    given = f_r_swap.detach() if detach_f_r else f_r_swap
    cycle = swapper.generate(f_f_swap, partner(given))
    return Passes(f_f, f_r, self_, swap, f_f_swap, cycle)


def update_D(nets: Nets, batch: Batch, out: Passes, c: TrainConfig) -> dict[str, Tensor]:
    """Update all discriminators."""
    return update_image_D(nets, batch, out, c) | update_feature_D(nets, batch, out.f_f, out.f_r, c)


def update_image_D(nets: Nets, batch: Batch, out: Passes, c: TrainConfig) -> dict[str, Tensor]:
    """Update the image discriminator. All its inputs are detached, so E and DG do not change."""
    n = len(batch.x)
    reference = (out.self_ if c.consistency == "self" else out.cycle).detach()
    images = torch.cat([batch.x, reference, out.swap.detach()])
    with nets.accelerator.autocast():
        realism, swap = nets.D(images, torch.cat([batch.au, batch.au, partner(batch.au)]))
    loss = {
        "D_realism": lsgan_d_loss(realism[:n], realism[2 * n :]),
        "D_swap": lsgan_d_loss(swap[n : 2 * n], swap[2 * n :]),
    }
    optimizer_step(nets, nets.opt_D, sum(loss.values()))
    return loss


def update_feature_D(nets: Nets, batch: Batch, f_f: Free, f_r: Tensor, c: TrainConfig) -> dict[str, Tensor]:
    """Update the discriminators of the features, D_f (AU classes from f_f) and D_r (subject from f_r)."""
    loss: dict[str, Tensor] = {}
    for _ in range(c.feature_d_steps):
        with nets.accelerator.autocast():
            loss["D_f"] = ADVERSARIES[c.adversary][0](nets.D_f(f_f.detach()), batch.cls, nets.class_weight)
            loss["D_r"] = class_discriminator_loss(nets.D_r(f_r.detach()), batch.subject, nets.subject_weight)
        optimizer_step(nets, nets.opt_f, sum(loss.values()))
    return loss


def update_G(nets: Nets, batch: Batch, out: Passes, c: TrainConfig) -> dict[str, Tensor]:
    """Update E and DG. Gradients pass through the frozen discriminators but do not change them."""
    x, au, au_b, swapper, w = batch.x, batch.au, partner(batch.au), nets.swapper, c.weights
    loss: dict[str, Tensor] = {}
    with nets.accelerator.autocast():
        # the AU branch learns from real images only
        _, logit = swapper.read_au(augment(x))
        loss["au"] = au_loss(logit, au, nets.au_weight)
        # disentangle: f_f must not contain the AUs, f_r must not contain the subject
        with frozen(nets.D_f):
            loss["hide_au"] = ADVERSARIES[c.adversary][1](nets.D_f(out.f_f), batch.cls, nets.class_weight)
        with frozen(nets.D_r):
            loss["hide_subject"] = class_confusion_loss(nets.D_r(out.f_r), batch.subject, nets.subject_weight)
        # images
        loss["self_"] = reconstruction_loss(out.self_, x)
        loss["cycle"] = reconstruction_loss(out.cycle, x)
        with frozen(nets.D):
            realism, swap = nets.D(out.swap, au_b)
        loss["realism"] = lsgan_g_loss(realism)
        loss["swap"] = lsgan_g_loss(swap)
        # the swap must show the AUs of b; AU branch frozen and its input augmented, or G would learn to deceive it
        with frozen(swapper):
            f_r_swap, logit = swapper.read_au(augment(out.swap))
        loss["guide"] = au_loss(logit, au_b, nets.au_weight)
        loss["agree_f"] = agreement_loss(as_map(out.f_f_swap), as_map(out.f_f))
        loss["agree_r"] = agreement_loss(f_r_swap, partner(out.f_r))
    loss["G"] = (
        w.au * loss["au"]
        + w.hide_au * loss["hide_au"]
        + w.self_ * loss["self_"]
        + w.cycle * loss["cycle"]
        + w.realism * loss["realism"]
        + w.swap * loss["swap"]
        + w.guide * loss["guide"]
        + w.agree_f * loss["agree_f"]
        + w.agree_r * loss["agree_r"]
        + w.hide_subject * loss["hide_subject"]
    )
    optimizer_step(nets, nets.opt_G, loss["G"])
    return loss


def train_step(nets: Nets, batch: Batch, c: TrainConfig) -> dict[str, Tensor]:
    """One step of the whole method as in the paper, from pairs of two people; returns all losses."""
    end_warmup(nets.swapper)
    with nets.accelerator.autocast():
        out = both_passes(nets.swapper, batch.x, c.detach_f_r, c.detach_swap)
    return update_D(nets, batch, out, c) | update_G(nets, batch, out, c)


def end_warmup(swapper: Swapper) -> None:
    """Make batch norm keep its statistics from now on."""
    if not swapper.warm:
        swapper.warm = True
        swapper.train()


def warmup_step(nets: Nets, batch: Batch, c: TrainConfig, done: float) -> dict[str, Tensor]:
    """One step of the AU branch alone, on real images; `done` in [0, 1] is the progress of the warm-up.

    Augmentation increases over the first half, because with full augmentation from the start learning begins late.
    """
    with nets.accelerator.autocast():
        _, logit = nets.swapper.read_au(augment(batch.x, min(1.0, 2 * done)))
    loss = {"au": au_loss(logit, batch.au, nets.au_weight)}
    optimizer_step(nets, nets.opt_G, loss["au"])
    return loss


def optimizer_step(nets: Nets, optimizer: torch.optim.Optimizer, loss: Any, longest: float | None = None) -> None:
    """One step of an optimizer with the gradient averaged over all processes and clipped to the norm `longest`.

    DistributedDataParallel cannot average it: it needs one forward pass of one module for each backward pass, but here
    three optimizers share the networks, and each network runs several times in a step, sometimes frozen.
    """
    optimizer.zero_grad(set_to_none=True)
    nets.accelerator.backward(loss)
    if processes.count() > 1:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        mean = nets.accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), "mean")
        for grad, m in zip(grads, mean.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(m.view_as(grad))
    if longest is not None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], longest)
    optimizer.step()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """In this context, gradients pass through the module but do not change it, and it is in eval mode."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    training = module.training
    for p in trainable:
        p.requires_grad_(False)
    module.eval()
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
        module.train(training)


def augment(x: Tensor, strength: float = 1.0, *, shift: bool = True) -> Tensor:
    """Shift by up to 1/32 of the side, blur, noise, contrast and colour, at random for each image; differentiable.

    Used on the images that train the AU branch and on those that it reads. x (B, 3, S, S) -> the same shape; `strength`
    in [0, 1] scales all changes; without `shift` the pixels stay in place.
    """
    b, size = len(x), x.shape[-1]

    def r(*shape: int) -> Tensor:
        return processes.draw(torch.rand, b, *shape, device=x.device)

    if shift:
        theta = torch.eye(2, 3, device=x.device).repeat(b, 1, 1)  # (B, 2, 3)
        theta[:, :, 2] = strength * (r(2) * 2 - 1) / 16  # of the half side
        x = F.grid_sample(x, F.affine_grid(theta, [b, 3, size, size], align_corners=False), padding_mode="reflection",
                          align_corners=False)  # fmt: skip
    x = torch.lerp(x, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), strength * r(1, 1, 1) * (r(1, 1, 1) < 0.5))
    x = x * (1 + strength * (0.4 * r(1, 1, 1) - 0.2)) + 0.2 * strength * (r(3, 1, 1) - 0.5)
    return x + 0.05 * strength * r(1, 1, 1) * processes.draw(torch.randn, *x.shape, device=x.device)
