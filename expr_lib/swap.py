"""Use a trained checkpoint: two faces in, the same two faces out with each other's expression, whole or AU by AU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from expr_lib import SHIPPED
from expr_lib.checkpoint import load_swapper
from expr_lib.datasets import to_float, to_uint8
from expr_lib.errors import InputError
from expr_lib.model import Swapper, mix


def load(path: str | Path = SHIPPED, device: str | torch.device = "cpu") -> Swapper:
    """The averaged networks of a checkpoint, in eval mode; ``FileNotFoundError`` or ``InputError`` where it is none."""
    return load_swapper(path, device)


def amounts(au_names: tuple[str, ...], only: tuple[str, ...] = (), amount: float = 1.0) -> Tensor:
    """How far each AU goes from the own (0) to the other's (1): ``amount`` for those in ``only`` (all if empty), (n,).

    Raises ``InputError`` for a name that is not in ``au_names`` and for an amount outside [0, 1].
    """
    if unknown := [name for name in only if name not in au_names]:
        raise InputError(f"unknown action unit {', '.join(unknown)}; known: {', '.join(au_names)}")
    if not 0.0 <= amount <= 1.0:
        raise InputError(f"amount: found {amount:g}, expected a number from 0 (own expression) to 1 (the other's)")
    return torch.tensor([amount if not only or name in only else 0.0 for name in au_names])


@torch.inference_mode()
def swap_images(
    swapper: Swapper, a: np.ndarray | Tensor, b: np.ndarray | Tensor, weights: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Swap the expressions of two batches of images, (B, S, S, 3) or (S, S, 3) uint8 -> two arrays of that shape.

    ``weights`` (n,) or (B, n) in [0, 1] says how far each AU goes from the own face (0) to the other's (1); None = 1.
    Raises ``InputError`` where the images have another shape or type than the checkpoint's.
    """
    device, size = next(swapper.parameters()).device, swapper.config.size
    faces = []
    for name, image in (("a", a), ("b", b)):
        image = torch.as_tensor(image)
        if image.dtype != torch.uint8 or image.shape[-3:] != (size, size, 3) or image.ndim not in (3, 4):
            found = f"{str(image.dtype).removeprefix('torch.')} of shape {tuple(image.shape)}"
            raise InputError(f"{name}: found {found}, expected uint8 of shape (B, {size}, {size}, 3)")
        faces.append(to_float(image.reshape(-1, size, size, 3).permute(0, 3, 1, 2).to(device)))  # (B, 3, S, S)
    (f_f_a, f_r_a), (f_f_b, f_r_b) = swapper.encode(faces[0]), swapper.encode(faces[1])
    w = torch.ones(f_r_a.shape[1], device=device) if weights is None else weights.to(device)
    swap_a = swapper.generate(f_f_a, mix(f_r_a, f_r_b, w))  # identity of a, expression of b
    swap_b = swapper.generate(f_f_b, mix(f_r_b, f_r_a, w))
    if not (swap_a.isfinite().all() and swap_b.isfinite().all()):
        raise InputError("the checkpoint draws numbers that are not finite; expected weights that training has made")
    return _pixels(swap_a, a), _pixels(swap_b, b)


def _pixels(images: Tensor, like: np.ndarray | Tensor) -> np.ndarray:
    """(B, 3, S, S) in [-1, 1] -> uint8, channels last, with the leading dimensions of the input."""
    return to_uint8(images).permute(0, 2, 3, 1).reshape(tuple(like.shape)).cpu().numpy()
