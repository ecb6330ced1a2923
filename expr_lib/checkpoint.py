"""Weights in and out: safetensors with JSON metadata. Never pickle, never half a file.

A training checkpoint and a released model are the same kind of file. A tensor's name starts with what it belongs to
(`swapper.`, `ema.`, `D.`, `opt_G.` ...); a released model has only `ema.`, the averaged weights, used at run time.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from expr_lib.model import ModelConfig, Swapper

FORMAT = 1


def save(
    path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, Any], *, keep_previous: bool = False
) -> None:
    """Write tensors and JSON metadata to `path`, whole or not at all: a temporary name, then a rename.

    With `keep_previous` the file that was there becomes `previous(path)`.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**metadata, "format": FORMAT, "sha256": digest(tensors)}
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(serialize(tensors, {"expr_lib": json.dumps(metadata)}))
            os.fsync(file.fileno())  # on the disk before it gets its name
        if keep_previous and path.exists():
            os.replace(path, previous(path))
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def load(path: str | Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote -> tensors on the device, metadata.

    Raises FileNotFoundError, or ValueError for a file that is cut short, damaged or not ours, each in one line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected a checkpoint (.safetensors)")
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get("expr_lib", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError, OSError) as error:
        size, why = path.stat().st_size, " ".join(str(error).split())
        raise ValueError(f"{path}: truncated or not safetensors: {size} bytes ({why})") from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        found = metadata.get("format") if isinstance(metadata, dict) else "no expr_lib metadata"
        raise ValueError(f"{path}: format: found {found!r}, expected {FORMAT}")
    if (found := digest(tensors)) != metadata["sha256"]:
        raise ValueError(f"{path}: damaged: sha256 of the tensors is {found}, expected {metadata['sha256']}")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, metadata


def previous(path: str | Path) -> Path:
    """checkpoint.safetensors -> checkpoint.prev.safetensors, the one before it."""
    path = Path(path)
    return path.with_suffix(".prev" + path.suffix)


def load_last(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Like `load`; a damaged or missing file is replaced by the one before it, with a warning. None where both miss."""
    try:
        return load(path)
    except (FileNotFoundError, ValueError) as error:
        if not previous(path).exists():
            if isinstance(error, FileNotFoundError):
                return None
            raise
        warnings.warn(f"{error}; {previous(path)} is used instead", stacklevel=2)
        return load(previous(path))


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes, whatever order the tensors come in."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, named `prefix.name`."""
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def load_module(prefix: str, module: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    """Fill a module from `prefix.*`; ValueError names the first tensor that is missing, unknown or of another shape."""
    own = module.state_dict()
    given = {name.removeprefix(prefix + "."): t for name, t in tensors.items() if name.startswith(prefix + ".")}
    if not given:
        others = ", ".join(sorted({name.split(".")[0] for name in tensors}))
        raise ValueError(f"{path}: holds no {prefix!r} weights, only {others}")
    for name in sorted(own.keys() | given.keys()):
        found = f"shape {tuple(given[name].shape)}" if name in given else "nothing"
        expected = f"shape {tuple(own[name].shape)}" if name in own else "no such tensor"
        if found != expected:
            raise ValueError(f"{path}: {prefix}.{name}: found {found}, expected {expected}")
    module.load_state_dict(given)


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of Adam, named `prefix.parameter.quantity`. Learning rates are the configuration's business."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{key}": value for i, values in state.items() for key, value in values.items()}


def load_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Fill an optimizer from `prefix.*`, as `optimizer_tensors` wrote them.

    Moments get the memory layout of their weights: fused Adam walks through both in the order of the memory and, on the
    CPU (torch 2.13), does not notice where the orders differ.
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
    """The ModelConfig in a checkpoint's metadata; ValueError says which entry this version does not know."""
    known, given = {field.name for field in fields(ModelConfig)}, metadata["model"]
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"{path}: model configuration: found {unknown}, expected only {sorted(known)}")
    return ModelConfig(**(given | {"levels": tuple(given["levels"])}))


def check_au_names(found: tuple[str, ...], expected: tuple[str, ...], path: str | Path) -> None:
    """ValueError that says which action units differ."""
    if found != expected:
        more, less = [n for n in found if n not in expected], [n for n in expected if n not in found]
        what = f"has {more}, lacks {less}" if more or less else f"order {list(found)}, expected {list(expected)}"
        raise ValueError(f"{path}: other action units: {what}")


def describe(swapper: Swapper, **more: Any) -> dict[str, Any]:
    """Metadata of a swapper: model configuration, AU names and whatever else is given (step, data hash, metrics)."""
    return {"model": asdict(swapper.config), "au_names": list(swapper.au_names), "size": swapper.config.size, **more}


def load_swapper(
    path: str | Path, device: str | torch.device = "cpu", *, au_names: tuple[str, ...] | None = None
) -> Swapper:
    """The averaged (EMA) generator side of a checkpoint, in eval mode; it knows its `au_names`, `config`, `metadata`.

    Give `au_names` to insist on them. Raises FileNotFoundError, or ValueError that says what differs.
    """
    tensors, metadata = load(path, device)
    found = tuple(metadata["au_names"])
    if au_names is not None:
        check_au_names(found, tuple(au_names), path)
    swapper = Swapper(model_config(metadata, path)).to(device)
    swapper.au_names, swapper.metadata = found, metadata
    load_module("ema", swapper, tensors, path)
    swapper.table = tensors.get("table.f_r")
    return swapper.eval()


def ship(source: str | Path, target: str | Path) -> None:
    """Copy only what is needed at run time: the averaged (EMA) weights, the table of f_r and the metadata."""
    tensors, metadata = load(source)
    save(target, {name: tensor for name, tensor in tensors.items() if name.startswith(("ema.", "table."))}, metadata)


PER_AU = {  # tensors of the swapper that have a part for each AU: name -> axis
    "DG.related.to_f_r.weight": 0, "DG.related.to_f_r.bias": 0, "DG.related.readout": 0, "DG.related.bias": 0,
    **{
        f"DG.{net}.{name}": axis
        for net in ("G", "take", "put")
        for name, axis in {"style.0.weight": 1, "gate.weight": 0, "gate.bias": 0, "paint": 0}.items()
    },
}  # fmt: skip
SAYS = tuple(name for name in PER_AU if name.endswith(("style.0.weight", "paint")))
"""Through these an AU changes the image; for a new one they begin at 0, so that the image stays as it was at first."""


def fine_tune_config(path: str | Path, config: ModelConfig) -> ModelConfig:
    """The model of a checkpoint, changed to the size, number of AUs, generator and noise of `config`.

    The moving generator may look at more pixels than the checkpoint, twice as many, four times, ...; ValueError for
    other sizes.
    """
    old = model_config(load(path)[1], path)
    times = config.size / old.size
    if times != 1 and not (config.generator == "moved" and times in (2, 4, 8)):
        raise ValueError(f"{path}: made for images of {old.size} pixels, found data of {config.size}")
    if len(old.levels) > 1:
        raise ValueError(f"{path}: has AU classes of its own for each AU, expected one number of classes for all")
    kept = {"size": config.size, "n_aus": config.n_aus, "generator": config.generator, "noise": config.noise}
    return replace(old, **kept)  # type: ignore[arg-type]


def start_from(path: str | Path, swapper: Swapper) -> dict[str, list[str]]:
    """Fill a new swapper with the averaged weights of a checkpoint that may have other AUs, found by name.

    Shared AUs keep their heads, wherever they stand in the order; new AUs have fresh ones; the heads of AUs that the
    swapper lacks are dropped. Returns the names as {"kept", "new", "dropped"}. If the checkpoint is of the other
    generator, the encoder and the AU branch are taken over, and what only the new generator has stays fresh. If the
    swapper looks at more pixels, it begins as the very same function of the reduced image.
    """
    tensors, about = load(path)
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
        told = given[name].movedim(axis, 0).unflatten(0, (len(before), -1)).to(fresh)
        if name in SAYS:
            fresh.zero_()
        fresh[rows] = told[from_rows]
        given[name] = fresh.flatten(0, 1).movedim(0, axis).reshape(own[name].shape).contiguous()
    load_module("ema", swapper, {f"ema.{name}": tensor for name, tensor in given.items()}, path)
    return {"kept": kept, "new": [n for n in now if n not in before], "dropped": [n for n in before if n not in now]}


def grown(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights for the sizes of `own`, a network that looks at more pixels, that do what the old ones did.

    A weight for a pixel that comes in is shared out to all pixels that now stand in its place; what was painted for one
    pixel is painted for all of them.
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
