"""Saving, checking and loading the weights of a swapper.

A training checkpoint and a released model have the same format. The name of a tensor starts with the network or
optimizer that it belongs to (`swapper.`, `ema.`, `D.`, `opt_G.` ...). A released model has only `ema.`, the averaged
weights that are used at run time, and `table.f_r`, which older files lack.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expr_lib import tensors as files
from expr_lib.blocks import ModelConfig
from expr_lib.errors import InputError
from expr_lib.facs import MAX_INTENSITY
from expr_lib.model import Swapper
from expr_lib.schema import SwapperFile, checked
from expr_lib.tensors import Shapes, fits, previous

save = files.write

TABLE = "table.f_r"
"""The tensor with the mean f_r of each AU at each intensity, (n, 6, d), which a finished run has."""
Check = Callable[[Shapes, dict[str, Any]], None]


def load(
    path: str | Path, device: str | torch.device = "cpu", check: Check | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save` -> tensors on the device, metadata; errors and `check` as in `tensors.read`."""
    tensors, metadata = files.read(path, check)
    return {name: tensor.to(device) for name, tensor in tensors.items()}, metadata


def load_last(path: str | Path, check: Check | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Like `load`, but read the previous file, with a warning, if this one is damaged or missing; None if both are."""
    try:
        return load(path, "cpu", check)
    except (FileNotFoundError, InputError) as error:
        if not previous(path).exists():
            if isinstance(error, FileNotFoundError):
                return None
            raise
        before = load(previous(path), "cpu", check)
        warnings.warn(f"{error}; {previous(path)} is used instead", stacklevel=2)
        return before


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, named `prefix.name`."""
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def part_of(prefix: str, tensors: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The tensors `prefix.*`, under their own names; InputError if there are none."""
    given = {name.removeprefix(prefix + "."): t for name, t in tensors.items() if name.startswith(prefix + ".")}
    if not given:
        others = ", ".join(sorted({name.split(".")[0] for name in tensors})) or "nothing"
        raise InputError(f"{path}: found only {others}, expected {prefix!r} weights")
    return given


def load_module(prefix: str, module: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    """Fill a module from `prefix.*`; InputError names the first tensor that is missing, unknown or does not fit."""
    check_module(prefix, module, tensors, path)
    module.load_state_dict(part_of(prefix, tensors, path))


def check_module(prefix: str, module: nn.Module, shapes: Shapes, path: str | Path) -> None:
    """InputError if the shapes and types of `prefix.*` are not those of the module."""
    given = {f"{prefix}.{name}": tensor for name, tensor in part_of(prefix, shapes, path).items()}
    fits(module_tensors(prefix, module), given, path)


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of Adam or Muon, named `prefix.parameter.quantity`, without the learning rates."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{key}": value for i, values in state.items() for key, value in values.items()}


def check_optimizer(prefix: str, optimizer: torch.optim.Optimizer, shapes: Shapes, path: str | Path) -> None:
    """InputError if `prefix.*` is not a state of this Adam or Muon; weights without updates have no state."""
    weights = [(p, group.get("muon", False)) for group in optimizer.param_groups for p in group["params"]]
    given = {name: tensor for name, tensor in shapes.items() if name.startswith(prefix + ".")}
    known: Shapes = {}
    for i, (weight, by_muon) in enumerate(weights):
        state: Shapes = {"step": torch.empty((), device="meta"), "exp_avg": weight, "exp_avg_sq": weight}
        if by_muon:
            del state["exp_avg_sq"]
        if any(f"{prefix}.{i}.{key}" in given for key in state):
            known |= {f"{prefix}.{i}.{key}": tensor for key, tensor in state.items()}
    fits(known, given, path)


def load_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Fill an optimizer from `prefix.*`, as `optimizer_tensors` wrote them.

    Moments get the memory layout of their weights, because fused Adam on the CPU (torch 2.13) gives wrong results
    without an error if the layouts differ.
    """
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            _, i, key = name.split(".")
            weight = weights[int(i)]
            laid_out = torch.empty_like(weight).copy_(tensor) if tensor.shape == weight.shape else tensor
            state.setdefault(int(i), {})[key] = laid_out
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def model_config(metadata: dict[str, Any], path: str | Path) -> ModelConfig:
    """The ModelConfig in the metadata of a checkpoint; InputError names an entry that is unknown or invalid.

    Types, defaults and ranges are those of the dataclass.
    """
    about = checked(SwapperFile, metadata, f"{path}: metadata")
    known = {field.name for field in fields(ModelConfig)}
    if unknown := sorted(about.model.keys() - known):
        raise InputError(f"{path}: model configuration: found {unknown}, expected only {sorted(known)}")
    config = checked(ModelConfig, about.model, f"{path}: metadata: model")
    for name, found, expected in (
        ("au_names", len(about.au_names), config.n_aus),
        ("size", about.size, config.size),
    ):
        if found != expected:
            raise InputError(f"{path}: metadata: {name}: found {found}, expected {expected} as in the model")
    return config


def check_swapper(shapes: Shapes, metadata: dict[str, Any], path: str | Path) -> None:
    """InputError if a file does not contain the averaged weights of the swapper that it describes.

    The comparison uses the meta device, so that a file with wrong sizes needs no memory.
    """
    config = model_config(metadata, path)
    with torch.device("meta"):
        own = Swapper(config)
    check_module("ema", own, shapes, path)
    check_table(config, shapes, path)


def check_table(config: ModelConfig, shapes: Shapes, path: str | Path) -> None:
    """InputError if a file has a table that is not that of f_r by intensity (n, 6, d); it may have none."""
    if given := {name: tensor for name, tensor in shapes.items() if name.startswith("table.")}:
        fits({TABLE: torch.empty(config.n_aus, int(MAX_INTENSITY) + 1, config.d, device="meta")}, given, path)


def read_swapper(path: str | Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Like `load`, for a file with the averaged weights of a swapper; InputError for any other file."""
    return load(path, device, lambda shapes, metadata: check_swapper(shapes, metadata, path))


def check_au_names(found: tuple[str, ...], expected: tuple[str, ...], path: str | Path) -> None:
    """InputError, which names the differences, unless both lists of action units are equal."""
    if found != expected:
        more, less = [n for n in found if n not in expected], [n for n in expected if n not in found]
        what = f"has {more}, lacks {less}" if more or less else f"order {list(found)}, expected {list(expected)}"
        raise InputError(f"{path}: other action units: {what}")


def describe(swapper: Swapper, **more: Any) -> dict[str, Any]:
    """Metadata of a swapper: model configuration, AU names and further entries such as step and data."""
    return {"model": asdict(swapper.config), "au_names": list(swapper.au_names), "size": swapper.config.size, **more}


def load_swapper(path: str | Path, device: str | torch.device = "cpu") -> Swapper:
    """The averaged E and DG of a checkpoint, in eval mode, with `au_names`, `config` and `metadata`.

    Raises FileNotFoundError, or InputError if the file is not a checkpoint.
    """
    tensors, metadata = read_swapper(path, device)
    swapper = Swapper(model_config(metadata, path)).to(device)
    swapper.au_names, swapper.metadata = tuple(metadata["au_names"]), metadata
    load_module("ema", swapper, tensors, path)
    swapper.table = tensors[TABLE].float() if TABLE in tensors else None
    return swapper.eval()


def ship(source: str | Path, target: str | Path) -> None:
    """Copy what is needed at run time: the averaged (EMA) weights, the table of f_r and the metadata.

    Raises InputError if the source is not a swapper.
    """
    tensors, metadata = read_swapper(source)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith("ema.") or name == TABLE}
    save(target, kept, metadata)


PER_AU = {  # tensors of the swapper that have a part for each AU: name -> axis
    "DG.related.to_f_r.weight": 0, "DG.related.to_f_r.bias": 0, "DG.related.readout": 0, "DG.related.bias": 0,
    **{
        f"DG.{net}.{name}": axis
        for net in ("G", "take", "put")
        for name, axis in {"style.0.weight": 1, "gate.weight": 0, "gate.bias": 0, "paint": 0}.items()
    },
}  # fmt: skip
IMAGE_SIDE = tuple(name for name in PER_AU if name.endswith(("style.0.weight", "paint")))
"""Weights through which an AU changes the image; they start at 0 for a new AU, so that it has no effect at first."""


def fine_tune_config(path: str | Path, config: ModelConfig) -> ModelConfig:
    """The model of a checkpoint, changed to the size, number of AUs, generator and noise of `config`.

    The moving generator may have 2, 4 or 8 times the size of the checkpoint; InputError for other sizes.
    """
    old = model_config(read_swapper(path)[1], path)
    times = config.size / old.size
    if times != 1 and not (config.generator == "moved" and times in (2, 4, 8)):
        raise InputError(f"{path}: found images of {config.size} pixels, expected {old.size} as in the checkpoint")
    if len(old.levels) > 1:
        raise InputError(f"{path}: found {len(old.levels)} numbers of AU classes, expected one for all AUs")
    kept = {"size": config.size, "n_aus": config.n_aus, "generator": config.generator, "noise": config.noise}
    return replace(old, **kept)  # type: ignore[arg-type]


def start_from(path: str | Path, swapper: Swapper) -> dict[str, list[str]]:
    """Fill a new swapper with the averaged weights of a checkpoint that may have other AUs, found by name.

    Shared AUs keep their heads, in any order; new AUs keep their initial ones; the heads of AUs that the swapper lacks
    are dropped. Returns the names as {"kept", "new", "dropped"}. If the checkpoint has the other generator, only the
    encoder and the AU branch are copied. If the swapper has a larger size, it starts as the same function of the
    reduced image.
    """
    tensors, about = read_swapper(path)
    before, now = tuple(about["au_names"]), tuple(swapper.au_names)
    kept = [name for name in now if name in before]
    rows, from_rows = [now.index(name) for name in kept], [before.index(name) for name in kept]
    given = {name.removeprefix("ema."): t for name, t in tensors.items() if name.startswith("ema.")}
    own, old = swapper.state_dict(), model_config(about, path)
    if given and old.generator != swapper.config.generator:
        given = own | {name: tensor for name, tensor in given.items() if name in own}
    given = grown(given, own)
    for name, axis in PER_AU.items():
        if name not in given or name not in own or (given[name].shape == own[name].shape and before == now):
            continue
        fresh = own[name].clone().movedim(axis, 0).unflatten(0, (len(now), -1))  # (n * d, ...) -> (n, d, ...)
        old_part = given[name].movedim(axis, 0).unflatten(0, (len(before), -1)).to(fresh)
        if name in IMAGE_SIDE:
            fresh.zero_()
        fresh[rows] = old_part[from_rows]
        given[name] = fresh.flatten(0, 1).movedim(0, axis).reshape(own[name].shape).contiguous()
    load_module("ema", swapper, {f"ema.{name}": tensor for name, tensor in given.items()}, path)
    if TABLE in tensors:
        swapper.table = torch.zeros(len(now), *tensors[TABLE].shape[1:])
        swapper.table[rows] = tensors[TABLE].float()[from_rows]
    return {"kept": kept, "new": [n for n in now if n not in before], "dropped": [n for n in before if n not in now]}


def grown(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a smaller network, converted to the shapes of `own` so that the function stays the same.

    The weight of an input pixel is divided equally among the pixels that replace it; the weight of an output pixel is
    repeated.
    """
    grown = dict(tensors)
    for name, tensor in tensors.items():
        if name not in own or tensor.shape == own[name].shape:
            continue
        if name == "E.net.1.0.weight" or name.endswith(".fine.weight"):
            p, times = (round((n / 3) ** 0.5) for n in (tensor.shape[1], 3 * own[name].shape[1] / tensor.shape[1]))
            parts = tensor.unflatten(1, (3, p, p)).repeat_interleave(times, 2).repeat_interleave(times, 3)
            grown[name] = (parts / times**2).flatten(1, 3).contiguous()  # (c, 3 p^2, 3, 3) -> (c, 3 (p times)^2, 3, 3)
        elif name.endswith((".fill.weight", ".fill.bias")):
            p, times = (round((n / 4) ** 0.5) for n in (len(tensor), 4 * len(own[name]) / len(tensor)))
            parts = tensor.unflatten(0, (4, p, p)).repeat_interleave(times, 1).repeat_interleave(times, 2)
            grown[name] = parts.flatten(0, 2).contiguous()
    return grown
