"""Reading and writing safetensors files: networks, judges, scales, the head model, training state.

Files are written whole or not at all and contain finite numbers only. Metadata are JSON under the key `expr_lib`; in
older files each entry has its own key. Metadata are checked before memory is allocated for the tensors.
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
from expr_lib.files import replacing
from expr_lib.schema import FORMAT, MAX_BYTES, check_format, checked, decode

Shapes = dict[str, Tensor]
"""Tensors on the meta device, which have shapes and types but no numbers."""
TYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64, "I32": torch.int32,
    "U8": torch.uint8,
}  # fmt: skip
HALF = (torch.float16, torch.bfloat16)


def write(path: str | Path, tensors: dict[str, Tensor], about: dict[str, Any], *, keep_previous: bool = False) -> None:
    """Write tensors and JSON metadata, whole or not at all.

    With `keep_previous`, an existing valid file is renamed to `previous(path)`. Raises FloatingPointError if a number
    is not finite; an existing file is then kept.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if wrong := unsound(name, tensor):
            raise FloatingPointError(f"{path}: not written: {name} contains {wrong}; the existing file is kept")
    text = json.dumps({**about, "format": FORMAT, "sha256": digest(tensors)}, allow_nan=False)
    content = serialize(tensors, {"expr_lib": text})
    with replacing(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # on disk before it is renamed
        if keep_previous and is_sound(path):
            os.replace(path, previous(path))


def read(
    path: str | Path, check: Callable[[Shapes, dict[str, Any]], None] | None = None, what: str = "a checkpoint"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `write` -> tensors on the CPU, metadata.

    `check` gets the shapes and the metadata and may raise an error before memory is allocated for the tensors. Raises
    FileNotFoundError, or InputError for a file that is truncated, damaged, of another format or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected {what} (.safetensors)")
    size = path.stat().st_size
    with path.open("rb") as start:
        header = int.from_bytes(start.read(8), "little")
    if MAX_BYTES < header <= size:
        raise InputError(f"{path}: found a header of {header:,} bytes, expected at most {MAX_BYTES:,}")
    try:
        with safe_open(path, "pt") as file:
            about = _metadata(file.metadata() or {}, path)
            names = list(file.keys())
            shapes = {name: _shape(file.get_slice(name), name, path) for name in names}
            if check is not None:
                check(shapes, about)
            tensors = {name: file.get_tensor(name).clone() for name in names}  # a memory map would change with the file
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
    for key, value in raw.items():  # an older file, each entry JSON or plain text
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
        raise InputError(f"{path}: {name}: found type {tensor.get_dtype()}, expected {', '.join(TYPES)}")
    try:
        return torch.empty(tensor.get_shape(), dtype=kind, device="meta")
    except (RuntimeError, TypeError, OverflowError):
        raise InputError(f"{path}: {name}: found shape {tensor.get_shape()}, expected a smaller one") from None


def fits(own: Shapes, given: Shapes, where: str | Path) -> None:
    """InputError for the first tensor in `given` that is missing, unknown, or differs from `own` in shape or type.

    Floating-point numbers may have half precision. Only shapes and types are compared.
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
    """Describe invalid numbers in a tensor: NaN, Inf or a negative variance; "" if there are none."""
    if not tensor.is_floating_point():
        return ""
    if not tensor.isfinite().all():
        return "NaN" if tensor.isnan().any() else "Inf"
    return "a negative variance" if name.endswith("running_var") and (tensor < 0).any() else ""


def is_sound(path: str | Path) -> bool:
    """Whether `read` succeeds."""
    try:
        read(path)
    except (InputError, OSError):
        return False
    return True


def previous(path: str | Path) -> Path:
    """checkpoint.safetensors -> checkpoint.prev.safetensors, the previous checkpoint."""
    path = Path(path)
    return path.with_suffix(".prev" + path.suffix)


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes, independent of the order of the tensors."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
