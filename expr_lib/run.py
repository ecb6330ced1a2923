"""A training run on disk: lock, log, samples, checkpoints, stopping and resuming."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from tqdm import tqdm

from expr_lib import checkpoint, processes
from expr_lib.blocks import ModelConfig
from expr_lib.datasets import FaceData, draw_takes, held_out_pairs, to_float, to_uint8
from expr_lib.errors import InputError
from expr_lib.files import replace_file, writing
from expr_lib.images import write_png
from expr_lib.model import Swapper, mean_f_r
from expr_lib.schema import SwapperFile, checked
from expr_lib.signals import stop_signals
from expr_lib.step import Nets, TakeWeights, TrainConfig, Weights

SHOWN = ("au", "self_", "cycle", "realism", "guide", "take", "rest", "gain")  # losses beside the progress bar
EXPLODED = 100.0  # every loss except the weighted total is a mean of order 1; none exceeded 2 in a normal run

TAKE_PAIRS = 64
"""Pairs inside takes on which the gain in log.csv is measured, of people who are not trained on if there are takes."""
CHECKPOINT = "checkpoint.safetensors"
TABLE_IMAGES = 4096
"""Number of training images, evenly spaced, from which the table of f_r by intensity is computed."""


class Run:
    """Everything around the training steps. In `with Run(...) as run:` the folder is locked and signals are delayed.

    `run.start` is the number of steps already done; `nets` are restored from the checkpoint.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, nets: Nets, data: FaceData, about: dict[str, Any],
        allow_changes: bool = False,
    ) -> None:  # fmt: skip
        self.folder, self.config, self.nets, self.about, self.allow_changes = folder, config, nets, about, allow_changes
        self.path = folder / CHECKPOINT
        self.main = nets.accelerator.is_main_process  # only one of several processes writes
        split = "val" if len(np.unique(data.subject[data.split == "val"])) > 1 else "train"
        if len(np.unique(data.subject[data.split == split])) > 1:
            pairs = held_out_pairs(data, config.n_samples, config.seed, split=split)  # (n, 2)
        else:  # takes of one person
            data = data.subset(split)
            pairs = draw_takes(data, config.n_samples, np.random.default_rng(config.seed))[:, :2]
        self.data, self.held_out = only(data, pairs)
        learn = data.subset("train")
        self.take_pairs = take_pairs(data, config.seed) if config.supervision == "takes" else None
        spaced = np.unique(np.linspace(0, len(learn) - 1, min(TABLE_IMAGES, len(learn))).astype(int))
        self.table_images = learn[spaced]
        self.losses = LatestLosses(nets, self.path)

    def __enter__(self) -> Run:
        with ExitStack() as stack:
            if self.main:
                stack.enter_context(writing(self.folder))
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock(self.folder))
            self.start, changes = resume(self.nets, self.path, self.about, self.allow_changes)
            self.about |= {"changes": changes} if changes else {}
            self.log = stack.enter_context(Log(self.folder, self.start)) if self.main else None
            self.signals = stack.enter_context(stop_signals(signal.SIGINT, signal.SIGTERM))
            self.bar = stack.enter_context(
                tqdm(
                    total=self.config.steps, initial=self.start, unit="step", dynamic_ncols=True, disable=not self.main
                )
            )
            self.closing = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.closing.__exit__(*error)

    def after(self, step: int, loss: dict[str, Tensor]) -> None:
        """After each step: write the log, a picture or a checkpoint if one is due, and stop if a signal has arrived.

        Only then does the CPU wait for the device. Raises FloatingPointError after a loss has exploded and then writes
        nothing.
        """
        c, done = self.config, step + 1
        log, picture, save = (done % n == 0 or done == c.steps for n in (c.log_every, c.sample_every, c.save_every))
        self.losses.add(step, loss)
        self.bar.update()
        stop = self.stop_requested(now=log or save)
        if not (log or picture or save or stop):
            return
        values = self.losses.latest()
        if self.log and picture and self.take_pairs:
            values["gain"] = take_gain(self.nets.ema, *self.take_pairs, self.nets.accelerator.device)
        if self.log and (log or "gain" in values):
            self.log.write(done, values)
            shown = " ".join(f"{k} {v:.3f}" for k, v in values.items() if k in SHOWN)
            images = 2 * (c.warmup_batch_size if step < c.warmup_steps else c.batch_size)
            self.bar.set_postfix_str(f"{(self.bar.format_dict['rate'] or 0) * images:.0f} images/s {shown}")
        if self.log and picture:
            self.log.picture(done, sample(self.nets.ema, self.data, self.held_out, self.nets.accelerator.device))
        if self.log and (save or stop):
            tensors = all_tensors(self.nets)
            kept = self.nets.ema.table if self.nets.ema.reads_only else None
            if done == c.steps and not self.nets.ema.reads_only:
                kept = table(self.nets.ema, self.table_images, self.nets.accelerator.device)
            if kept is not None:
                tensors[checkpoint.TABLE] = kept
            metadata = checkpoint.describe(self.nets.ema, step=done, **self.about)
            checkpoint.save(self.path, tensors, metadata, keep_previous=True)
        if stop:
            if self.log:
                self.bar.write(
                    f"stopped after step {done}; saved in {self.path}; the same command continues from there"
                )
            if self.signals and self.signals[0] == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + (self.signals[0] if self.signals else signal.SIGTERM))

    def stop_requested(self, now: bool) -> bool:
        """Has a signal arrived, in any process? Several processes ask each other only if `now` is set."""
        if processes.count() == 1 or not now:
            return bool(self.signals) and processes.count() == 1
        here = self.nets.accelerator
        return bool(here.reduce(torch.tensor(float(len(self.signals)), device=here.device), "sum") > 0)


class LatestLosses:
    """The losses of the last step, or of the first step that exploded, on the device until `latest` waits for them."""

    def __init__(self, nets: Nets, path: Path) -> None:
        self.reduce, self.path = nets.accelerator.reduce, path
        self.names: list[str] = []
        self.kept = torch.empty(0)  # (losses + 2,) the losses, their step, 1 if one of them exploded

    def add(self, step: int, loss: dict[str, Tensor]) -> None:
        """Keep the losses of a step, averaged over all processes."""
        if fresh := self.names != [*loss]:
            self.latest()
            self.names = [*loss]
        mean = self.reduce(torch.stack([*loss.values()]).detach(), "mean")  # (losses,)
        single = torch.stack([value for name, value in zip(loss, mean, strict=True) if name != "G"])
        exploded = ~(single.abs() < EXPLODED).all()  # NaN is not below anything
        new = torch.cat([mean, mean.new_full((1,), step), exploded[None].to(mean)])
        self.kept = new if fresh else torch.where(self.kept[-1] > 0, self.kept, new)

    def latest(self) -> dict[str, float]:
        """The losses of the last step; FloatingPointError, with the last good checkpoint, if a loss has exploded."""
        if not self.names:
            return {}
        *values, step, exploded = self.kept.tolist()
        losses = dict(zip(self.names, values, strict=True))
        if exploded:
            bad = ", ".join(f"{k} {v:.3g}" for k, v in losses.items() if k != "G" and not abs(v) < EXPLODED)
            last = f"the last good checkpoint is {self.path}" if self.path.exists() else "there is no checkpoint yet"
            raise FloatingPointError(f"step {step:.0f}: loss exploded ({bad}); {last}")
        return losses


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock the folder for this process; BlockingIOError if another process has locked it."""
    try:
        with FileLock(folder / ".train.lock", timeout=0):
            yield
    except Timeout:
        raise BlockingIOError(
            f"{folder}: another process is training here; wait for it or choose another --run"
        ) from None


def all_tensors(nets: Any) -> dict[str, Tensor]:
    """The tensors of all networks and optimizers that are attributes of `nets`."""
    tensors: dict[str, Tensor] = {}
    for name, value in vars(nets).items():
        if isinstance(value, nn.Module):
            tensors |= checkpoint.module_tensors(name, value)
        elif isinstance(value, torch.optim.Optimizer):
            tensors |= checkpoint.optimizer_tensors(name, value)
    return tensors


def restore(nets: Any, tensors: dict[str, Tensor], path: Path) -> None:
    """Fill the networks and optimizers from `all_tensors`; InputError for tensors that do not fit a network."""
    for name, value in vars(nets).items():
        if isinstance(value, nn.Module):
            checkpoint.load_module(name, value, tensors, path)
        elif isinstance(value, torch.optim.Optimizer):
            checkpoint.load_optimizer(name, value, tensors)


def resume(
    nets: Nets, path: Path, about: dict[str, Any], allow_changes: bool = False
) -> tuple[int, list[dict[str, Any]]]:
    """Restore networks and optimizers from a checkpoint -> steps done (0 without a checkpoint), changed settings.

    InputError if its settings or data differ from those in `about`; with `allow_changes` the differences are added,
    with their step, to the list of changes.
    """

    def check(shapes: dict[str, Tensor], found: dict[str, Any]) -> None:
        kept = checked(SwapperFile, found, f"{path}: metadata")
        checkpoint.check_au_names(kept.au_names, nets.swapper.au_names, path)
        checked(TrainConfig, kept.train, f"{path}: metadata: train")
        config = checkpoint.model_config(found, path)
        if config.generator != (now := nets.swapper.config.generator):
            raise InputError(f"{path}: found generator {config.generator}, expected {now}; choose another --run")
        checkpoint.check_table(config, shapes, path)
        for name, value in vars(nets).items():
            if isinstance(value, nn.Module):
                checkpoint.check_module(name, value, shapes, path)
            elif isinstance(value, torch.optim.Optimizer):
                checkpoint.check_optimizer(name, value, shapes, path)

    if (last := checkpoint.load_last(path, check)) is None:
        return 0, []
    tensors, found = last
    about |= {"start": found["start"]} if "start" in found else {}
    changed = differences(found, checkpoint.describe(nets.swapper, **about))
    other = {k: v for k, v in changed.items() if k not in FREE and not (k == "steps" and v[0] < v[1])}
    if other and not allow_changes:
        listed = ", ".join(f"{name} {before} (now {now})" for name, (before, now) in other.items())
        raise InputError(f"{path}: made with {listed}; continue with --allow-changes or choose another --run")
    restore(nets, tensors, path)
    nets.ema.table = tensors.get(checkpoint.TABLE)
    step = found.get("step", 0)
    if changed and nets.accelerator.is_main_process:
        listed = ", ".join(f"{name} {before} (now {now})" for name, (before, now) in changed.items())
        tqdm.write(f"{path}: changed from step {step} on: {listed}")
    return step, found.get("changes", []) + ([{"step": step} | changed] if changed else [])


FREE = ("log_every", "sample_every", "save_every", "n_samples", "device", "precision", "compile")
"""Settings that do not change the result of training, except for rounding."""


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """Which settings and data differ between the metadata of two checkpoints: {name: [before, now]}."""
    one, other = _settings(before), _settings(now)
    return {name: [one[name], other[name]] for name in one if name in other and one[name] != other[name]}


def _settings(about: dict[str, Any]) -> dict[str, Any]:
    """All settings that define a run, in one flat dict; a setting that an older file lacks had its default value.

    Files contain what "auto" was resolved to; files without these settings were trained as in the paper.
    """
    train = asdict(TrainConfig()) | {"supervision": "unpaired", "generator": "drawn"} | about.get("train", {})
    parts = {
        "": {name: value for name, value in train.items() if name not in ("weights", "take_weights", "model")},
        "weights.": asdict(Weights()) | train["weights"],
        "take_weights.": asdict(TakeWeights()) | train["take_weights"],
        "model.": asdict(ModelConfig()) | about["model"],
        "data.": {name: text[:12] for name, text in about.get("data", {}).get("sha256", {}).items()},
    }
    flat = {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}
    return json.loads(json.dumps(flat))  # tuples are lists in a file


class Log:
    """log.csv, tensorboard/ and samples/. A resumed run removes the rows logged after its checkpoint."""

    def __init__(self, run: Path, step: int) -> None:
        self.run, self.path = run, run / "log.csv"
        losses = Weights.__annotations__ | TakeWeights.__annotations__
        self.columns = ["step", *losses, "G", "D_realism", "D_swap", "D_f", "D_r", "gain"]
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, self.columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row for row in self.rows() if int(row["step"]) <= step)
        replace_file(self.path, table.getvalue().encode())

        from torch.utils.tensorboard import SummaryWriter  # slow to import

        threading.excepthook = self.in_thread
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    @staticmethod
    def in_thread(error: threading.ExceptHookArgs) -> None:
        """TensorBoard raises the errors of its thread again in ours, so that of a full disk is not shown here."""
        if not issubclass(error.exc_type, OSError):
            threading.__excepthook__(error)

    def rows(self) -> list[dict[str, str]]:
        """The rows of log.csv, without an incomplete line that a killed run has left."""
        if not self.path.is_file():
            return []
        # what follows the last line end is incomplete
        header, *lines = self.path.read_text(errors="replace").split("\n")[:-1] or [""]
        names = header.strip().split(",")
        cells = [line.strip().split(",") for line in lines]
        sound = [c for c in cells if len(c) == len(names) and re.fullmatch("[0-9]{1,18}", c[0])]
        return [dict(zip(names, c, strict=True)) for c in sound] if names[0] == "step" else []

    def write(self, step: int, values: dict[str, float]) -> None:
        with self.path.open("a", newline="") as file:
            row = {"step": step} | {k: f"{v:.6g}" for k, v in values.items()}
            csv.DictWriter(file, self.columns).writerow(row)
        for name, value in values.items():
            self.board.add_scalar(name if name == "gain" else f"loss/{name}", value, step)
        self.board.flush()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self.board.close()  # ends the thread of TensorBoard
        finally:
            threading.excepthook = threading.__excepthook__

    def picture(self, step: int, grid: np.ndarray) -> None:
        write_png(self.run / "samples" / f"{step:07d}.png", grid)
        self.board.add_image("samples", grid, step, dataformats="HWC")


def only(data: FaceData, pairs: np.ndarray) -> tuple[FaceData, np.ndarray]:
    """The images of pairs (n, 2) of rows alone, and the pairs as rows of these: fewer are copied to the device."""
    rows, places = np.unique(pairs, return_inverse=True)
    return data[rows], places.reshape(pairs.shape)


def take_pairs(data: FaceData, seed: int) -> tuple[FaceData, np.ndarray]:
    """Fixed pairs inside takes, of the validation people if they have takes: their images, rows of them (n, 2)."""
    held_out = data.subset("val")
    try:
        drawn = draw_takes(held_out, TAKE_PAIRS, np.random.default_rng(seed))
    except InputError:
        held_out = data.subset("train")
        drawn = draw_takes(held_out, TAKE_PAIRS, np.random.default_rng(seed))
    return only(held_out, drawn[:, :2])


@torch.no_grad()
def take_gain(swapper: Swapper, data: FaceData, pairs: np.ndarray, device: torch.device) -> float:
    """The gain of giving image 1 of a take the expression of image 2, over pairs (n, 2): 0 is copying, 1 is perfect.

    As `metrics.gain`, but over the whole picture and for swaps of one person, whose true answer is image 2. Our choice.
    """
    one, other = (to_float(data.pixels(pairs[:, i], device)) for i in (0, 1))  # (n, 3, S, S)
    answer = swapper.generate(swapper.encode(one)[0], swapper.encode(other)[1])
    return float(1 - (answer - other).abs().mean() / (one - other).abs().mean())


@torch.no_grad()
def table(swapper: Swapper, data: FaceData, device: torch.device) -> Tensor:
    """The mean f_r of each AU at each intensity over these images, (n, 6, d)."""
    chunks = np.array_split(np.arange(len(data)), -(-len(data) // 64))
    f_r = torch.cat([swapper.read_au(to_float(data.pixels(chunk, device)))[0].cpu() for chunk in chunks])
    return mean_f_r(f_r, torch.from_numpy(data.au))


@torch.no_grad()
def sample(swapper: Swapper, data: FaceData, pairs: np.ndarray, device: torch.device) -> np.ndarray:
    """A grid of images, one column for each pair (n, 2) of rows of `data` -> (5 S, n S, 3) uint8.

    From top to bottom: a, b, swap, self-reconstruction, and the cross-cycle (drawn) or the face at rest (moved).
    """
    a, b = (to_float(data.pixels(pairs[:, i], device)) for i in (0, 1))  # (n, 3, S, S)
    swap_a, swap_b = swapper.swap(a, b)
    last = swapper.rest(swapper.encode(a)[0])
    if last is None:
        last, _ = swapper.swap(swap_a, swap_b)
    rows = torch.stack([a, b, swap_a, swapper.reconstruct(a), last])  # (5, n, 3, S, S)
    grid = to_uint8(rows).permute(0, 3, 1, 4, 2)  # (5, S, n, S, 3)
    return grid.reshape(5 * data.size, len(pairs) * data.size, 3).cpu().numpy()
