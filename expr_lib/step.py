"""Training: the step as in the paper, then the loop around it (log, samples, checkpoints, resuming)."""

from __future__ import annotations

import copy
import csv
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs
from torch import Tensor, nn
from tqdm import tqdm

from expr_lib import checkpoint, model, processes
from expr_lib.datasets import FaceData, batches, held_out_pairs, to_float, to_uint8
from expr_lib.images import write_png
from expr_lib.losses import (
    ADVERSARIES,
    agreement_loss,
    au_loss,
    au_weights,
    class_weights,
    fool,
    hide_class,
    reconstruction_loss,
    tell_class,
    tell_images,
)
from expr_lib.model import ModelConfig, Swapper, au_classes


@dataclass(frozen=True)
class Weights:
    """Weight of each loss of the generator side. The sister code's are AU 1, adversary 1.2, cross-cycle 40, self 3."""

    au: float = 10.0  # real images: which AUs?
    hide_au: float = 8.0  # f_f must not tell the AU classes
    hide_subject: float = 0.1  # f_r must not tell the subject
    self_: float = 40.0  # self-reconstruction, L1
    cycle: float = 60.0  # cross-cycle, L1
    realism: float = 1.0
    swap: float = 1.0  # swap consistency
    guide: float = 3.0  # our AU branch, frozen, must read b's AUs from the swap
    agree_f: float = 0.5  # the swap keeps a's f_f
    agree_r: float = 3.0  # the swap has b's f_r


@dataclass(frozen=True)
class TrainConfig:
    """Everything that defines a run."""

    steps: int = 14_000  # optimizer steps in total, the warm-up included
    warmup_steps: int = 1_500  # first the AU branch alone: inside a GAN it learns slowly, alone quickly
    warmup_batch_size: int = 16  # pairs, so twice as many images; batch norm needs many
    batch_size: int = 8  # pairs; several processes share them
    warmup_lr: float = 2e-3  # of the AU branch alone, falling to lr
    lr: float = 8e-4  # generator side
    lr_d: float = 3e-4  # discriminators
    cooldown: float = 0.3  # share of the steps over which all learning rates fall to 0 at the end
    feature_d_steps: int = 2  # updates of D_f and D_r for each step; they are tiny and must keep up with the encoder
    adversary: Literal["uniform", "none", "reversal", "inverted", "entropy"] = "uniform"  # how f_f hides the AUs
    detach_f_r: bool = True  # reconstruction does not reach f_r, so identity cannot be smuggled into it
    detach_swap: bool = True  # the cross-cycle does not reach the first pass, so a's expression is not kept for it
    consistency: Literal["self", "cycle"] = "self"  # "self-reconstructed" in swap consistency: G(f_f, f_r) or I-hat
    ema: float = 0.999  # decay of the averaged weights, those that are shipped
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the hardware multiplies it, else fp32
    device: Literal["auto", "cpu"] = "auto"  # auto: the accelerator (CUDA, MPS) where there is one
    compile: bool = False  # torch.compile of E, G and D: some minutes at the start, for long runs on a GPU
    seed: int = 0
    log_every: int = 20
    sample_every: int = 500
    save_every: int = 500
    n_samples: int = 8  # pairs in each sample grid
    weights: Weights = field(default_factory=Weights)
    model: ModelConfig = field(default_factory=ModelConfig)


# ------------------------------------------------------------------------------------------ the step, as in the paper


@dataclass
class Nets:
    """All networks, their optimizers, the label statistics that weigh the losses, and where all of it runs."""

    swapper: Swapper  # E and DG
    ema: Swapper  # its moving average
    D: model.D
    D_f: model.D_f
    D_r: model.D_r | None  # None where no subject is labelled
    opt_G: torch.optim.Optimizer
    opt_D: torch.optim.Optimizer
    opt_f: torch.optim.Optimizer
    au_weight: Tensor  # (n,)
    class_weight: Tensor  # (n, L)
    subject_weight: Tensor  # (1, n_subjects)
    accelerator: Accelerator  # device, precision, processes


@dataclass
class Batch:
    """x holds a and b one after the other, so that rolling by half gives every image its partner."""

    x: Tensor  # (2B, 3, S, S) in [-1, 1]
    au: Tensor  # (2B, n) in [0, 5], NaN = missing
    cls: Tensor  # (2B, n) AU classes, -1 = missing
    subject: Tensor  # (2B, 1) index among the training subjects, -1 = missing


@dataclass
class Passes:
    """What both passes give, for a and b at once."""

    f_f: Tensor  # (2B, C, S/4, S/4)
    f_r: Tensor  # (2B, n, d)
    self_: Tensor  # (2B, 3, S, S)  G(f_f^a, f_r^a): should be I^a
    swap: Tensor  # (2B, 3, S, S)  İ^a = G(f_f^a, f_r^b): a with the expression of b
    f_f_swap: Tensor  # (2B, C, S/4, S/4)  E, DG of İ^a
    cycle: Tensor  # (2B, 3, S, S)  Î^a, swapped back: should be I^a again


def partner(t: Tensor) -> Tensor:
    """(a, b) -> (b, a)."""
    return t.roll(len(t) // 2, 0)


def both_passes(swapper: Swapper, x: Tensor, detach_f_r: bool = True, detach_swap: bool = True) -> Passes:
    """Encode and swap, then encode the swapped images and swap back.

    Why `detach_swap`: let a share m of the expression pass through f_r and the rest hide in f_f. The swap then shows
    m of b's expression and 1 - m of a's, and the way back misses I^a by m (1 - m). Whoever may change both passes makes
    that small by m -> 0 as long as m < 1/2: the first pass copies its input. Given the swap as it is, the second pass
    can only make 1 - m small. Our choice.
    """
    f_f, f_r = swapper.encode(x)
    given = f_r.detach() if detach_f_r else f_r
    n = len(x)
    self_, swap = swapper.generate(torch.cat([f_f, f_f]), torch.cat([given, partner(given)])).split(n)
    f_f_swap, f_r_swap = swapper.encode(swap.detach() if detach_swap else swap)
    given = f_r_swap.detach() if detach_f_r else f_r_swap
    cycle = swapper.generate(f_f_swap, partner(given))
    return Passes(f_f, f_r, self_, swap, f_f_swap, cycle)


def update_D(nets: Nets, batch: Batch, out: Passes, c: TrainConfig) -> dict[str, Tensor]:
    """The discriminators learn. Everything from the generator side is detached: it stays as it is, bit for bit."""
    n = len(batch.x)
    reference = (out.self_ if c.consistency == "self" else out.cycle).detach()
    images = torch.cat([batch.x, reference, out.swap.detach()])
    with nets.accelerator.autocast():
        realism, swap = nets.D(images, torch.cat([batch.au, batch.au, partner(batch.au)]))
    loss = {
        "D_realism": tell_images(realism[:n], realism[2 * n :]),
        "D_swap": tell_images(swap[n : 2 * n], swap[2 * n :]),
    }
    descend(nets, nets.opt_D, sum(loss.values()))
    for _ in range(c.feature_d_steps):
        with nets.accelerator.autocast():
            loss["D_f"] = ADVERSARIES[c.adversary][0](nets.D_f(out.f_f.detach()), batch.cls, nets.class_weight)
            if nets.D_r is not None:
                loss["D_r"] = tell_class(nets.D_r(out.f_r.detach()), batch.subject, nets.subject_weight)
        descend(nets, nets.opt_f, sum(loss[k] for k in ("D_f", "D_r") if k in loss))
    return loss


def update_G(nets: Nets, batch: Batch, out: Passes, c: TrainConfig) -> dict[str, Tensor]:
    """E and DG learn. The discriminators are frozen: gradients pass through them, none stay there."""
    x, au, au_b, swapper, w = batch.x, batch.au, partner(batch.au), nets.swapper, c.weights
    loss: dict[str, Tensor] = {}
    with nets.accelerator.autocast():
        # the AU branch learns from real images, and from nothing else
        _, logit = swapper.read_au(augment(x))
        loss["au"] = au_loss(logit, au, nets.au_weight)
        # disentangle: f_f must not tell the AUs, f_r must not tell the subject
        with frozen(nets.D_f):
            loss["hide_au"] = ADVERSARIES[c.adversary][1](nets.D_f(out.f_f), batch.cls, nets.class_weight)
        if nets.D_r is not None:
            with frozen(nets.D_r):
                loss["hide_subject"] = hide_class(nets.D_r(out.f_r), batch.subject, nets.subject_weight)
        # images
        loss["self_"] = reconstruction_loss(out.self_, x)
        loss["cycle"] = reconstruction_loss(out.cycle, x)
        with frozen(nets.D):
            realism, swap = nets.D(out.swap, au_b)
        loss["realism"] = fool(realism)
        loss["swap"] = fool(swap)
        # the swap shows the AUs of b: its reader is frozen, and sees it augmented, or G would learn to please it
        with frozen(swapper):
            f_r_swap, logit = swapper.read_au(augment(out.swap))
        loss["guide"] = au_loss(logit, au_b, nets.au_weight)
        loss["agree_f"] = agreement_loss(out.f_f_swap, out.f_f)
        loss["agree_r"] = agreement_loss(f_r_swap, partner(out.f_r))
    loss["G"] = torch.stack([getattr(w, name) * value for name, value in loss.items()]).sum()
    descend(nets, nets.opt_G, loss["G"])
    return loss


def train_step(nets: Nets, batch: Batch, c: TrainConfig) -> dict[str, Tensor]:
    """One step of the whole method."""
    if not nets.swapper.warm:
        nets.swapper.warm = True
        nets.swapper.train()
    with nets.accelerator.autocast():
        out = both_passes(nets.swapper, batch.x, c.detach_f_r, c.detach_swap)
    return update_D(nets, batch, out, c) | update_G(nets, batch, out, c)


def warmup_step(nets: Nets, batch: Batch, c: TrainConfig, done: float) -> dict[str, Tensor]:
    """One step of the AU branch alone, on real images; `done` is the share of the warm-up that is over.

    Augmentation grows over the first half: in full from the start, the branch sees nothing for long.
    """
    with nets.accelerator.autocast():
        _, logit = nets.swapper.read_au(augment(batch.x, min(1.0, 2 * done)))
    loss = {"au": au_loss(logit, batch.au, nets.au_weight)}
    descend(nets, nets.opt_G, loss["au"])
    return loss


def set_learning_rates(nets: Nets, c: TrainConfig, step: int) -> None:
    """High while the AU branch warms up alone, then level, and over the last `cooldown` of all steps down to 0.

    The whole method starts gently: Adam knows E from the small gradients of the AU branch alone, and would answer the
    first, far larger ones of the reconstruction with steps that end what the branch has learnt.
    """
    lr, fall = c.lr, min(1.0, (c.steps - step) / max(1.0, c.cooldown * c.steps))
    if step < c.warmup_steps:
        done = step / c.warmup_steps
        lr = (c.lr + (c.warmup_lr - c.lr) * (1 - done)) * min(1.0, 50 * done + 0.02)
    else:
        lr *= min(1.0, (1 + step - c.warmup_steps) / 300)
    for optimizer, rate in ((nets.opt_G, lr), (nets.opt_D, c.lr_d), (nets.opt_f, c.lr_d)):
        for group in optimizer.param_groups:
            group["lr"] = rate * fall


def descend(nets: Nets, optimizer: torch.optim.Optimizer, loss: Any) -> None:
    """One step along the gradient, averaged over all processes.

    Averaged here and not by DistributedDataParallel, which wants one forward of one module before each backward: three
    optimizers share these networks, and each network runs several times in a step, now learning, now frozen.
    """
    optimizer.zero_grad(set_to_none=True)
    nets.accelerator.backward(loss)
    if processes.count() > 1:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        mean = nets.accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), "mean")
        for grad, m in zip(grads, mean.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(m.view_as(grad))
    optimizer.step()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, gradients flow through the module but not into it; no noise, no power iteration of spectral norm."""
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


def augment(x: Tensor, strength: float = 1.0) -> Tensor:
    """Shift by up to 1/32 of the side, blur, noise, contrast and colour, at random for each image; differentiable.

    Both what trains the AU branch and what it judges pass through here. x (B, 3, S, S) -> the same shape; `strength`
    in [0, 1] scales everything.
    """
    b, size = len(x), x.shape[-1]

    def r(*shape: int) -> Tensor:
        return processes.draw(torch.rand, b, *shape, device=x.device)

    theta = torch.eye(2, 3, device=x.device).repeat(b, 1, 1)  # (B, 2, 3)
    theta[:, :, 2] = strength * (r(2) * 2 - 1) / 16  # of the half side
    x = F.grid_sample(x, F.affine_grid(theta, [b, 3, size, size], align_corners=False), padding_mode="reflection",
                      align_corners=False)  # fmt: skip
    x = torch.lerp(x, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), strength * r(1, 1, 1) * (r(1, 1, 1) < 0.5))
    x = x * (1 + strength * (0.4 * r(1, 1, 1) - 0.2)) + 0.2 * strength * (r(3, 1, 1) - 0.5)
    return x + 0.05 * strength * r(1, 1, 1) * processes.draw(torch.randn, *x.shape, device=x.device)


# ----------------------------------------------------------------------------------------------------------- the loop


SHOWN = ("au", "self_", "cycle", "realism", "guide")  # losses beside the progress bar
EXPLODED = 100.0  # every loss but the weighted total is a mean of order 1; in a healthy run none has exceeded 2


def accelerator(config: TrainConfig) -> Accelerator:
    """Device, precision and the other processes, if `accelerate launch` or `torchrun` started several."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a notebook may train in fp32 first, then in bf16
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    fast = (
        torch.cpu._is_avx512_bf16_supported() if cpu else torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    )
    precision = {"auto": "bf16" if fast else "no", "bf16": "bf16", "fp32": "no"}[config.precision]
    # no cache: it would hand `frozen` modules the copies of their weights that were made while they still learned
    return Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=[AutocastKwargs(cache_enabled=False)])


def build_nets(config: TrainConfig, data: FaceData) -> Nets:
    """Networks and optimizers, from the seed alone, for these training images."""
    where = accelerator(config)
    m, device = config.model, where.device
    torch.manual_seed(config.seed)
    au = torch.from_numpy(data.au)
    n_subjects = len(np.unique(data.subject[data.subject >= 0]))
    swapper, d, d_f = Swapper(m), model.D(m), model.D_f(m)
    d_r = model.D_r(m, n_subjects) if n_subjects > 1 else None
    swapper.au_names = data.au_names
    for net in (swapper, d, d_f, d_r):
        if net is not None:
            net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = copy.deepcopy(swapper).eval().requires_grad_(False)
    if config.compile:
        for part in (swapper.E, swapper.DG.G, d):
            part.compile()  # in place: the names of the weights stay

    def adam(lr: float, *nets: nn.Module | None) -> torch.optim.Optimizer:
        learn = [p for net in nets if net is not None for p in net.parameters()]
        return torch.optim.Adam(learn, lr, betas=(0.5, 0.99), fused=True)  # one kernel a weight instead of eight

    weight = class_weights(au_classes(au, m.au_levels), max(m.au_levels))
    return Nets(
        swapper, ema, d, d_f, d_r,
        adam(config.lr, swapper), adam(config.lr_d, d), adam(config.lr_d, d_f, d_r),
        au_weights(au).to(device), weight.to(device), torch.ones(1, max(n_subjects, 1), device=device), where,
    )  # fmt: skip


def batch_of(pairs: Any, subjects: Tensor, config: TrainConfig) -> Batch:
    """PairBatch -> Batch, or this process's part of it; each image mirrored by a coin toss (AUs have no side)."""
    x = to_float(processes.part(torch.cat([pairs.image_a, pairs.image_b])))  # (2B, 3, S, S)
    coin = processes.draw(torch.rand, len(x), 1, 1, 1, device=x.device) < 0.5
    x = torch.where(coin, x.flip(-1), x).contiguous(memory_format=torch.channels_last)
    au = processes.part(torch.cat([pairs.au_a, pairs.au_b]))
    subject = processes.part(torch.cat([pairs.subject_a, pairs.subject_b]))
    index = torch.searchsorted(subjects, subject).masked_fill(subject < 0, -1)
    return Batch(x, au, au_classes(au, config.model.au_levels), index[:, None])


def train(config: TrainConfig, data: FaceData, run: str | Path, start_from: str | Path | None = None) -> Path:
    """Train, or go on with what stands in `run`, and return the path of the checkpoint.

    `run` gets log.csv, tensorboard/, samples/*.png (rows: a, b, swap, self, cycle of fixed held-out pairs),
    checkpoint.safetensors and the one before it, checkpoint.prev.safetensors, which is used where the last is damaged.
    A run that was killed and started again ends, on the CPU, with the same bits as one that was not. SIGINT and SIGTERM
    save before leaving. Raises FloatingPointError, naming the last good checkpoint, when a loss is not finite or
    exceeds `EXPLODED`; ValueError for data, model or batch sizes that do not fit.

    With `start_from` a new run begins with the swapper of that checkpoint, AU heads found by name: fine-tuning. It has
    no warm-up, whatever the config says: that would train E for the AU branch alone, behind the back of G.
    """
    run, path = Path(run), Path(run) / "checkpoint.safetensors"
    run.mkdir(parents=True, exist_ok=True)
    config = replace(config, model=replace(config.model, size=data.size, n_aus=len(data.au_names)))
    if start_from:
        model_of = checkpoint.fine_tune_config(start_from, data.size, len(data.au_names))
        config = replace(config, model=replace(model_of, noise=config.model.noise), warmup_steps=0)
    learn = data.subset("train")
    nets = build_nets(config, learn)
    here = nets.accelerator
    if start_from:
        heads = checkpoint.start_from(start_from, nets.swapper)
        nets.ema.load_state_dict(nets.swapper.state_dict())
    for size in (config.warmup_batch_size, config.batch_size):
        if size % here.num_processes:
            raise ValueError(f"batch size {size}: expected a multiple of the {here.num_processes} processes")
    start = resume(nets, path)
    subjects = torch.from_numpy(np.unique(learn.subject[learn.subject >= 0])).to(here.device)
    split = "val" if len(np.unique(data.subject[data.split == "val"])) > 1 else "train"
    held_out = held_out_pairs(data, config.n_samples, config.seed, split=split)
    log = Log(run, start) if here.is_main_process else None
    bar = tqdm(total=config.steps, initial=start, unit="step", dynamic_ncols=True, disable=log is None)
    about = {"train": {k: v for k, v in asdict(config).items() if k != "model"}, "data": data.meta}
    if start_from:
        about["start"] = {"from": str(start_from), "heads": heads}
        which = "; ".join(f"{what} {', '.join(names) or 'none'}" for what, names in heads.items())
        if log:
            bar.write(f"AU heads of {start_from}: {which}")

    with stop_signals() as stop, bar:
        for step in range(start, config.steps):
            if step in (start, config.warmup_steps):
                n = config.warmup_batch_size if step < config.warmup_steps else config.batch_size
                pairs = batches(learn, n, seed=config.seed, device=here.device, first=step)
            torch.manual_seed(config.seed * 1_000_003 + step)  # all chance in a step depends on the step alone
            batch = batch_of(next(pairs), subjects, config)
            set_learning_rates(nets, config, step)
            if step < config.warmup_steps:
                loss = warmup_step(nets, batch, config, step / config.warmup_steps)
            else:
                loss = train_step(nets, batch, config)
            average(nets.ema, nets.swapper, config.ema, step)
            # what all processes must agree on: the mean losses, and whether one of them was told to stop
            told_me = torch.tensor(float(len(stop)), device=here.device)
            *means, told = here.reduce(torch.stack([*loss.values(), told_me]).detach(), "mean").tolist()
            values = dict(zip(loss, means, strict=True))
            if bad := [f"{k} {v:.3g}" for k, v in values.items() if k != "G" and not abs(v) < EXPLODED]:
                last = f"the last good checkpoint is {path}" if path.exists() else "there is no checkpoint yet"
                raise FloatingPointError(f"step {step}: loss exploded ({', '.join(bad)}); {last}")
            done, at_end = step + 1, step + 1 == config.steps
            bar.update()
            if log and (done % config.log_every == 0 or at_end):
                log.write(done, values)
                shown = " ".join(f"{k} {v:.3f}" for k, v in values.items() if k in SHOWN)
                bar.set_postfix_str(f"{(bar.format_dict['rate'] or 0) * 2 * n:.0f} images/s {shown}")
            if log and (done % config.sample_every == 0 or at_end):
                log.picture(done, sample(nets.ema, data, held_out, here.device))
            if log and (done % config.save_every == 0 or at_end or told):
                metadata = checkpoint.describe(nets.ema, step=done, **about)
                checkpoint.save(path, all_tensors(nets), metadata, keep_previous=True)
            if told:
                if log:
                    bar.write(f"stopped after step {done}; saved in {path}; the same command goes on from there")
                if stop and stop[0] == signal.SIGINT:
                    raise KeyboardInterrupt
                raise SystemExit(128 + (stop[0] if stop else signal.SIGTERM))
    here.end_training()  # several processes part here, after the last checkpoint is written
    return path


def average(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """ema <- decay ema + (1 - decay) model; the decay is small at first, so that the average forgets the start."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
        for kept, now in zip(ema.buffers(), model.buffers(), strict=True):
            kept.copy_(now)  # batch norm's statistics are averages already


def all_tensors(nets: Nets) -> dict[str, Tensor]:
    """Everything that a resumed run needs."""
    tensors: dict[str, Tensor] = {}
    for name, value in vars(nets).items():
        if isinstance(value, nn.Module):
            tensors |= checkpoint.module_tensors(name, value)
        elif isinstance(value, torch.optim.Optimizer):
            tensors |= checkpoint.optimizer_tensors(name, value)
    return tensors


def resume(nets: Nets, path: Path) -> int:
    """Fill networks and optimizers from a checkpoint -> number of steps done, 0 where there is none."""
    if (last := checkpoint.load_last(path)) is None:
        return 0
    tensors, about = last
    checkpoint.check_au_names(tuple(about["au_names"]), nets.swapper.au_names, path)
    for name, value in vars(nets).items():
        if isinstance(value, nn.Module):
            checkpoint.load_module(name, value, tensors, path)
        elif isinstance(value, torch.optim.Optimizer):
            checkpoint.load_optimizer(name, value, tensors)
    return about["step"]


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Inside, SIGINT and SIGTERM are only noted, in the list that this gives; outside the main thread, nothing is."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {s: signal.signal(s, lambda number, _: noted.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Log:
    """log.csv, tensorboard/ and samples/; a resumed run drops what was logged after its checkpoint."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.run, self.path = run, run / "log.csv"
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self.columns = ["step", *Weights.__annotations__, "G", "D_realism", "D_swap", "D_f", "D_r"]
        rows = list(csv.DictReader(self.path.open())) if self.path.exists() else []
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["step"]) <= step)

    def write(self, step: int, values: dict[str, float]) -> None:
        with self.path.open("a", newline="") as file:
            row = {"step": step} | {k: f"{v:.6g}" for k, v in values.items()}
            csv.DictWriter(file, self.columns).writerow(row)
        for name, value in values.items():
            self.board.add_scalar(f"loss/{name}", value, step)
        self.board.flush()

    def picture(self, step: int, grid: np.ndarray) -> None:
        write_png(self.run / "samples" / f"{step:07d}.png", grid)
        self.board.add_image("samples", grid, step, dataformats="HWC")


@torch.no_grad()
def sample(swapper: Swapper, data: FaceData, pairs: np.ndarray, device: torch.device) -> np.ndarray:
    """A picture of rows (n, 2) of `data`: one column for each pair; a, b, swap, self-reconstruction, cross-cycle.

    -> (5 S, n S, 3) uint8.
    """
    a, b = (to_float(data.pixels(pairs[:, i], device)) for i in (0, 1))  # (n, 3, S, S)
    swap_a, swap_b = swapper.swap(a, b)
    cycle_a, _ = swapper.swap(swap_a, swap_b)
    rows = torch.stack([a, b, swap_a, swapper.reconstruct(a), cycle_a])  # (5, n, 3, S, S)
    grid = to_uint8(rows).permute(0, 3, 1, 4, 2)  # (5, S, n, S, 3)
    return grid.reshape(5 * data.size, len(pairs) * data.size, 3).cpu().numpy()
