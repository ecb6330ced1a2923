"""One reader and one writer for every safetensors file: networks, judges, scales, the head, training state.

Never pickle, never half a file, never a number that is none. Metadata are JSON under the key `expr_lib`; in older files
each entry has a key of its own. What a file says of itself is checked before memory is taken for its tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from expr_lib.errors import InputError
from expr_lib.schema import FORMAT, MAX_BYTES, check_format, checked, decode

Shapes = dict[str, Tensor]
"""Tensors on the meta device: shapes and types, no numbers."""
TYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64, "I32": torch.int32,
    "U8": torch.uint8,
}  # fmt: skip
HALF = (torch.float16, torch.bfloat16)


def write(path: str | Path, tensors: dict[str, Tensor], about: dict[str, Any], *, keep_previous: bool = False) -> None:
    """Write tensors and JSON metadata, whole or not at all: a temporary name, then a rename.

    With `keep_previous` the file that was there, if it is sound, becomes `previous(path)`. FloatingPointError if a
    number is not finite; what was there is then kept.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if wrong := unsound(name, tensor):
            raise FloatingPointError(f"{path}: not written: {name} holds {wrong}; what was there is kept")
    text = json.dumps({**about, "format": FORMAT, "sha256": digest(tensors)}, allow_nan=False)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(serialize(tensors, {"expr_lib": text}))
            os.fsync(file.fileno())  # on the disk before it gets its name
        if keep_previous and is_sound(path):
            os.replace(path, previous(path))
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read(
    path: str | Path, check: Callable[[Shapes, dict[str, Any]], None] | None = None, what: str = "a checkpoint"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write` wrote -> tensors on the CPU, metadata.

    `check` gets the shapes and the metadata and may refuse them before memory is taken for the tensors. Raises
    FileNotFoundError, or InputError for a file that is cut short, damaged, not ours or not finite, each in one line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected {what} (.safetensors)")
    size = path.stat().st_size
    with path.open("rb") as start:
        header = int.from_bytes(start.read(8), "little")
    if MAX_BYTES < header <= size:
        raise InputError(f"{path}: found a header of {header:,} bytes, expected {MAX_BYTES:,} at most")
    try:
        with safe_open(path, "pt") as file:
            about = _metadata(file.metadata() or {}, path)
            names = list(file.keys())
            shapes = {name: _shape(file.get_slice(name), name, path) for name in names}
            if check is not None:
                check(shapes, about)
            tensors = {name: file.get_tensor(name).clone() for name in names}  # a map would change with the file
    except (SafetensorError, OSError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path}: truncated or not safetensors: {size} bytes ({why})") from None
    if "sha256" in about and (found := digest(tensors)) != about["sha256"]:
        raise InputError(f"{path}: damaged: sha256 of the tensors is {found}, expected {about['sha256']}")
    for name, tensor in tensors.items():
        if wrong := unsound(name, tensor):
            raise InputError(f"{path}: {name}: found {wrong}, expected finite numbers")
    return tensors, about


def _metadata(raw: dict[str, str], path: Path) -> dict[str, Any]:
    if "expr_lib" in raw:
        about = decode(raw["expr_lib"], f"{path}: metadata")
        check_format(about, str(path))
        checked(str, about.get("sha256"), f"{path}: metadata: sha256")
        return about
    if not raw:
        raise InputError(f"{path}: format: found 'no expr_lib metadata', expected {FORMAT}")
    about = {"format": FORMAT}
    for key, value in raw.items():  # an older file: each entry is JSON, or plain text
        try:
            about[key] = decode(value, f"{path}: metadata: {key}")
        except InputError as error:
            if "not valid JSON" not in str(error):
                raise
            about[key] = value
    check_format(about, str(path))
    return {key: value for key, value in about.items() if key != "sha256"}


def _shape(tensor: Any, name: str, path: Path) -> Tensor:
    if (kind := TYPES.get(tensor.get_dtype())) is None:
        raise InputError(f"{path}: {name}: found numbers of type {tensor.get_dtype()}, expected {', '.join(TYPES)}")
    try:
        return torch.empty(tensor.get_shape(), dtype=kind, device="meta")
    except (RuntimeError, TypeError, OverflowError):
        raise InputError(f"{path}: {name}: found shape {tensor.get_shape()}, expected a smaller one") from None


def fits(own: Shapes, given: Shapes, where: str | Path) -> None:
    """InputError for the first tensor that is missing, unknown, or of another shape or type than a network's own.

    Floating-point numbers may come in half precision. Only shapes and types are looked at: meta tensors will do.
    """
    for name in sorted(own.keys() | given.keys()):
        found = f"shape {tuple(given[name].shape)}" if name in given else "nothing"
        expected = f"shape {tuple(own[name].shape)}" if name in own else "no such tensor"
        if found == expected:
            kind, wanted = given[name].dtype, own[name].dtype
            if kind == wanted or (kind in HALF and wanted.is_floating_point):
                continue
            found, expected = (str(x).removeprefix("torch.") for x in (kind, wanted))
        raise InputError(f"{where}: {name}: found {found}, expected {expected}")


def unsound(name: str, tensor: Tensor) -> str:
    """What is wrong with the numbers of a tensor: NaN or Inf, or a variance below 0; "" if nothing is."""
    if not tensor.is_floating_point():
        return ""
    if not tensor.isfinite().all():
        return "NaN" if tensor.isnan().any() else "Inf"
    return "a negative variance" if name.endswith("running_var") and (tensor < 0).any() else ""


def is_sound(path: str | Path) -> bool:
    """Is there a file that `read` would read?"""
    try:
        read(path)
    except (InputError, OSError):
        return False
    return True


def previous(path: str | Path) -> Path:
    """checkpoint.safetensors -> checkpoint.prev.safetensors, the one before it."""
    path = Path(path)
    return path.with_suffix(".prev" + path.suffix)


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes, whatever order the tensors come in."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
