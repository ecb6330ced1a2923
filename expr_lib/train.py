"""Training: the networks, the learning rates, and the loop over steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs
from torch import nn
from tqdm import tqdm

from expr_lib import checkpoint, model
from expr_lib.datasets import FaceData, batches
from expr_lib.errors import InputError
from expr_lib.losses import au_weights, class_weights
from expr_lib.model import Swapper, au_classes
from expr_lib.muon import muon
from expr_lib.run import CHECKPOINT, Run
from expr_lib.step import Batch, Nets, batch_of, train_step, warmup_step
from expr_lib.step import TrainConfig as TrainConfig  # callers of `train` need it
from expr_lib.take_step import take_step
from expr_lib.tensors import is_sound, previous

MAX_NUMBERS = 2 * 10**9
"""Largest number of weights in all networks; with gradients and averages these need some 32 GB."""

RISE = 20
"""Steps over which the learning rate increases if no image has a label: E and the AU branch, which need 300, then do
not learn, and Adam knows the size of the gradients after 20. A fine-tuning of 300 steps never had the full rate."""


def accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator for this device and precision, with all processes of `accelerate launch` or `torchrun`."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a notebook may train in fp32 first, then in bf16
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    precision = {"auto": "bf16" if multiplies_bf16(cpu) else "no", "bf16": "bf16", "fp32": "no"}[config.precision]
    # no cache, which would give `frozen` modules copies of their weights from before they were frozen
    return Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=[AutocastKwargs(cache_enabled=False)])


def multiplies_bf16(cpu: bool) -> bool:
    """Whether the hardware multiplies bf16. T4 and V100 only emulate it, which is slower than fp32."""
    if cpu:
        return torch.cpu._is_avx512_bf16_supported()
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def build_nets(config: TrainConfig, data: FaceData) -> Nets:
    """Networks and optimizers for these training images; the initial weights depend on the seed only."""
    where = accelerator(config)
    m, device = config.model, where.device
    torch.manual_seed(config.seed)
    with torch.device("meta"):
        numbers = sum(p.numel() for net in (Swapper(m), model.D(m), model.D_f(m)) for p in net.parameters())
    if numbers > MAX_NUMBERS:
        raise InputError(f"model: found {numbers:,} weights, expected at most {MAX_NUMBERS:,}")
    au = torch.from_numpy(data.au)
    n_subjects = len(np.unique(data.subject))
    swapper, d, d_f, d_r = Swapper(m), model.D(m), model.D_f(m), model.D_r(m, n_subjects)
    swapper.au_names = data.au_names
    for net in (swapper, d, d_f, d_r):
        net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = copy.deepcopy(swapper).eval().requires_grad_(False)
    if config.compile:
        for part in (swapper.E, swapper.DG.G if isinstance(swapper.DG, model.DG) else swapper.DG.put, d):
            part.compile()  # in place, which keeps the names of the weights

    def adam(lr: float, *nets: nn.Module) -> torch.optim.Optimizer:
        learn = [p for net in nets for p in net.parameters()]
        return torch.optim.Adam(learn, lr, betas=(0.5, 0.99), fused=True)  # one kernel per weight instead of eight

    weight = class_weights(au_classes(au, m.au_levels), max(m.au_levels))
    return Nets(
        swapper, ema, d, d_f, d_r,
        muon(swapper, config.take_lr, config.muon) if config.supervision == "takes" else adam(config.lr, swapper),
        adam(config.lr_d, d), adam(config.lr_d, d_f, d_r),
        au_weights(au).to(device), weight.to(device), torch.ones(1, n_subjects, device=device), where,
    )  # fmt: skip


def settled(config: TrainConfig, data: FaceData) -> TrainConfig:
    """The config with every "auto" resolved and the sizes of these training data.

    Raises InputError if the config needs takes and the data have none.
    """
    has_takes = bool((np.unique(data.take[data.take >= 0], return_counts=True)[1] > 1).any())
    supervision = config.supervision if config.supervision != "auto" else "takes" if has_takes else "unpaired"
    if supervision == "takes" and not has_takes:
        raise InputError("supervision takes: found no take with two images, expected the column take in labels.csv")
    generator = config.generator if config.generator != "auto" else "moved" if supervision == "takes" else "drawn"
    sizes = replace(config.model, generator=generator, size=data.size, n_aus=len(data.au_names))
    return replace(config, supervision=supervision, generator=generator, model=sizes)


def set_learning_rates(nets: Nets, c: TrainConfig, step: int, rise: int = 300) -> None:
    """High in the warm-up, then constant, and over the last share `cooldown` of the steps decreasing to 0.

    After the warm-up the rate increases over `rise` steps. Adam has scaled the steps of E to the small gradients of the
    AU branch; the much larger gradients of the reconstruction would at first destroy what the branch has learned.
    """
    main = c.take_lr if c.supervision == "takes" else c.lr
    lr, fall = main, min(1.0, (c.steps - step) / max(1.0, c.cooldown * c.steps))
    if step < c.warmup_steps:
        done = step / c.warmup_steps
        lr = (main + (c.warmup_lr - main) * (1 - done)) * min(1.0, 50 * done + 0.02)
    else:
        lr *= min(1.0, (1 + step - c.warmup_steps) / rise)
    for optimizer, rate in ((nets.opt_G, lr), (nets.opt_D, c.lr_d), (nets.opt_f, c.lr_d)):
        for group in optimizer.param_groups:
            group["lr"] = rate * fall * group.get("faster", 1.0)


def average(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """ema <- decay ema + (1 - decay) model; the decay is smaller in the first steps, to forget the initial weights."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
        for kept, now in zip(ema.buffers(), model.buffers(), strict=True):
            kept.copy_(now)  # statistics of batch norm are already averages


def batches_from(
    first: int, config: TrainConfig, learn: FaceData, device: torch.device
) -> Iterator[tuple[int, Batch]]:  # fmt: skip
    """(step, its batch) for the steps `first` to `config.steps - 1`: of two people in the warm-up, then as supervised.

    The random numbers of a step depend on seed and step only, so a run that goes on is the same as one without a pause.
    """
    subjects = torch.from_numpy(np.unique(learn.subject)).to(device)
    takes = config.supervision == "takes"
    for step in range(first, config.steps):
        warm = step < config.warmup_steps
        if step in (first, config.warmup_steps):
            n = config.warmup_batch_size if warm else config.batch_size
            pairs = batches(learn, n, seed=config.seed, device=device, first=step, takes=takes and not warm)
        torch.manual_seed(config.seed * 1_000_003 + step)
        yield step, batch_of(next(pairs), subjects, config)


def train(
    config: TrainConfig,
    data: FaceData,
    run: str | Path,
    start_from: str | Path | None = None,
    *,
    allow_changes: bool = False,
) -> Path:  # fmt: skip
    """Train, or continue the run in the folder `run`, and return the path of the checkpoint.

    `run` gets log.csv, tensorboard/, samples/*.png (see `run.sample`), checkpoint.safetensors and the one before it,
    checkpoint.prev.safetensors, which replaces a damaged one. On the CPU, a run that was killed and continued ends with
    the same bits as an uninterrupted one. SIGINT and SIGTERM save a checkpoint and then stop the run. Raises
    FloatingPointError, with the last good checkpoint, if a loss is not finite or exceeds `EXPLODED`; InputError for
    data, model or batch sizes that do not fit, and for a run with other settings or data, unless `allow_changes` is
    set, which records the changes and their step in the metadata.

    With `start_from`, a new run starts with the swapper of that checkpoint, with the AU heads matched by name
    (fine-tuning); for a run that exists it counts for nothing, and a line says so. It never has a warm-up, which would
    change E without adapting G. If no image has a label, as in films, `take` and `put` learn from the takes, while E
    and the AU branch stay as they are and read; this needs `start_from` weights.
    """
    run = Path(run)
    own = [path for path in (run / CHECKPOINT, previous(run / CHECKPOINT)) if path.exists()]
    learn = data.subset("train")
    labelled = not np.isnan(learn.au).all()
    config = settled(config, learn)
    if (people := len(np.unique(learn.subject))) < 2 and config.supervision != "takes":
        raise InputError(f"split train: found {people} subjects, expected at least 2")
    if not labelled and not (start_from and config.supervision == "takes"):
        raise InputError("labels: found none, expected some; without labels, takes and --start-from weights are needed")
    if start_from:
        source = next((path for path in own if is_sound(path)), own[0]) if own else start_from
        config = replace(config, model=checkpoint.fine_tune_config(source, config.model), warmup_steps=0)
    nets = build_nets(config, learn)
    here, told = nets.accelerator, list[str]()
    about = {"train": {k: v for k, v in asdict(config).items() if k != "model"}, "data": data.meta}
    if start_from and own:
        told.append(f"{run}: this run exists and goes on with its own weights; --start-from counts for nothing")
    elif start_from:
        heads = checkpoint.start_from(start_from, nets.swapper)
        nets.ema.load_state_dict(nets.swapper.state_dict())
        nets.ema.table = nets.swapper.table
        about["start"] = {"from": str(start_from), "heads": heads}
        which = "; ".join(f"{what} {', '.join(names) or 'none'}" for what, names in heads.items())
        told.append(f"AU heads of {start_from}: {which}")
    if not labelled:
        nets.swapper.only_read()
        nets.ema.only_read()
        told.append("no image has a label: take and put learn from the takes, E and the AU branch stay as they are")
    for line in told if here.is_main_process else ():
        tqdm.write(line)
    for size in (config.warmup_batch_size, config.batch_size):
        if size % here.num_processes:
            raise InputError(f"batch size {size}: expected a multiple of the {here.num_processes} processes")

    with Run(run, config, nets, data, about, allow_changes) as this:
        for step, batch in batches_from(this.start, config, learn, here.device):
            set_learning_rates(nets, config, step, 300 if labelled else RISE)
            if step < config.warmup_steps:
                loss = warmup_step(nets, batch, config, step / config.warmup_steps)
            else:
                loss = (take_step if config.supervision == "takes" else train_step)(nets, batch, config)
            average(nets.ema, nets.swapper, config.ema, step)
            this.after(step, loss)
    here.end_training()  # all processes wait here until the last checkpoint is written
    return this.path
