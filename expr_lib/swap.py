"""Using a trained checkpoint: exchange the expressions of two faces, entirely or AU by AU, or set AUs by numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from expr_lib import SHIPPED
from expr_lib.checkpoint import load_swapper
from expr_lib.datasets import NUMBER, to_float, to_uint8
from expr_lib.errors import InputError
from expr_lib.facs import MAX_INTENSITY
from expr_lib.model import Swapper, mix
from expr_lib.moving import resize


def load(path: str | Path = SHIPPED, device: str | torch.device = "cpu") -> Swapper:
    """The averaged networks of a checkpoint, in eval mode; `FileNotFoundError` or `InputError` if it is not one."""
    return load_swapper(path, device)


def amounts(au_names: tuple[str, ...], only: tuple[str, ...] = (), amount: float = 1.0) -> Tensor:
    """Weights (n,) of the other face: `amount` for the AUs in `only` (all if empty), 0 for the rest.

    Raises `InputError` for a name that is not in `au_names` and for an amount outside [0, 1].
    """
    if unknown := [name for name in only if name not in au_names]:
        raise InputError(f"unknown action unit {', '.join(unknown)}; known: {', '.join(au_names)}")
    if not 0.0 <= amount <= 1.0:
        raise InputError(f"amount: found {amount:g}, expected a number from 0 (own expression) to 1 (other expression)")
    return torch.tensor([amount if not only or name in only else 0.0 for name in au_names])


def parse_expression(words: tuple[str, ...], au_names: tuple[str, ...]) -> dict[str, float]:
    """("AU12=4", "AU6=3") -> {"AU12": 4.0, "AU6": 3.0}.

    Raises `InputError` for a word of another form, an unknown or repeated AU, and an intensity outside [0, 5].
    """
    asked: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        if name not in au_names:
            raise InputError(f"{word}: found action unit {name!r}, expected one of {', '.join(au_names)}")
        if name in asked:
            raise InputError(f"{word}: found {name} twice, expected it once")
        if not re.fullmatch(f"{NUMBER}|nan|[+-]?inf", number):
            raise InputError(f"{word}: found {number!r} after =, expected a number from 0 to 5")
        asked[name] = float(number)
        if not 0 <= asked[name] <= MAX_INTENSITY:
            raise InputError(f"{word}: found intensity {number}, expected 0 (absent) to 5 (FACS letter E)")
    if not asked:
        raise InputError("found no action unit, expected at least one such as AU12=4")
    return asked


@torch.inference_mode()
def express_images(
    swapper: Swapper, images: np.ndarray | Tensor, asked: dict[str, float], from_rest: bool = False
) -> np.ndarray:
    """Set AUs of faces (B, R, R, 3) or (R, R, 3) uint8 to the intensities `asked` -> an array of that shape.

    The other AUs keep their values or, with `from_rest`, become 0. Raises `InputError` for images
    as in `swap_images`, and for a checkpoint without a table of f_r by intensity.
    """
    f_f, own = swapper.encode(network_input(swapper, "face", images))
    return _pixels(swapper.generate(f_f, expression(swapper, own, asked, from_rest)), images)


def expression(swapper: Swapper, own: Tensor, asked: dict[str, float], from_rest: bool = False) -> Tensor:
    """f_r (B, n, d) with the intensities `asked` of some AUs, the others of `own` or, with `from_rest`, at 0."""
    names = swapper.au_names
    au = torch.tensor([[asked.get(name, 0.0) for name in names]], device=own.device).expand(len(own), -1)
    given = torch.tensor([from_rest or name in asked for name in names], device=own.device)
    return torch.where(given[:, None], swapper.f_r_of(au), own)


@torch.inference_mode()
def swap_images(
    swapper: Swapper, a: np.ndarray | Tensor, b: np.ndarray | Tensor, weights: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Swap the expressions of two batches of images, (B, R, R, 3) or (R, R, 3) uint8 -> two arrays of that shape.

    `weights` (n,) or (B, n) in [0, 1] interpolates each AU between the own face (0) and the other (1); None = 1.
    R is any size for the moving generator, and may differ between a and b; the drawing one has a fixed size.
    Raises `InputError` if the images have another shape or type.
    """
    (f_f_a, f_r_a), (f_f_b, f_r_b) = (
        swapper.encode(network_input(swapper, name, x)) for name, x in (("a", a), ("b", b))
    )
    w = torch.ones(f_r_a.shape[1], device=f_r_a.device) if weights is None else weights.to(f_r_a.device)
    swap_a = swapper.generate(f_f_a, mix(f_r_a, f_r_b, w))  # identity of a, expression of b
    swap_b = swapper.generate(f_f_b, mix(f_r_b, f_r_a, w))
    return _pixels(swap_a, a), _pixels(swap_b, b)


@torch.inference_mode()
def rest_images(swapper: Swapper, images: np.ndarray | Tensor) -> np.ndarray | None:
    """Predicted faces at rest, for images as in `swap_images`; None for the drawing generator."""
    face = swapper.rest(swapper.encode(network_input(swapper, "face", images))[0])
    return None if face is None else _pixels(face, images)


@torch.inference_mode()
def read_images(swapper: Swapper, images: np.ndarray | Tensor) -> np.ndarray:
    """The AU intensities that the AU branch reads from faces as in `swap_images` -> (B, n) or (n,) in [0, 5]."""
    au = swapper.intensities(read_f_r(swapper, images))
    return au.reshape(*images.shape[:-3], -1).float().cpu().numpy()


# -- films ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def read_f_r(swapper: Swapper, images: np.ndarray | Tensor) -> Tensor:
    """The expressions of faces as in `swap_images` -> f_r (B, n, d)."""
    return swapper.read_au(resize(network_input(swapper, "face", images), swapper.config.size))[0]


def smoothed(f_r: Tensor, sigma: float) -> Tensor:
    """f_r (N, n, d) of N frames, smoothed over time with a centred Gaussian, which causes no delay -> the same shape.

    `sigma` is its standard deviation in frames, and it is cut off at three of them. The first and the last frame are
    repeated beyond the ends. Our choice.
    """
    reach = math.ceil(3 * sigma)
    if reach == 0:
        return f_r
    t = torch.arange(-reach, reach + 1, device=f_r.device)
    weight = torch.exp(-(t**2) / (2 * sigma**2))
    series = F.pad(f_r.flatten(1).T.unsqueeze(1), (reach, reach), mode="replicate")  # (N, n, d) -> (n * d, 1, N + 2 r)
    return F.conv1d(series, (weight / weight.sum())[None, None]).squeeze(1).T.reshape(f_r.shape)


@torch.inference_mode()
def driven(swapper: Swapper, own: Tensor, film: Tensor, absolute: bool = False) -> Tensor:
    """The expressions of a film, (N, n, d), transferred to a still with its own, (1, n, d) -> f_r (N, n, d) in [-1, 1].

    The motion is relative: the difference between each frame and the film's most neutral frame is added to the still's
    own f_r. The most neutral frame is the one with the smallest sum of intensities, as the AU branch reads them. f_r
    also tells how a face looks at rest, and this part of it then cancels. With `absolute` the result is f_r of the
    frames. Our choice, after First Order Motion Model (Siarohin et al., NeurIPS 2019).
    """
    if absolute:
        return film
    neutral = film[swapper.intensities(film).sum(1).argmin()]
    return (own + film - neutral).clamp(-1, 1)


@torch.inference_mode()
def animated(swapper: Swapper, face: np.ndarray | Tensor, f_r: Tensor) -> Iterator[np.ndarray]:
    """A still (R, R, 3) uint8 with each of the expressions f_r (N, n, d): yields N images of its shape.

    The still is encoded once. Raises `InputError` as `swap_images` does.
    """
    f_f, _ = swapper.encode(network_input(swapper, "face", face))
    for rows in f_r.split(16):
        images = swapper.generate(f_f[torch.zeros(len(rows), dtype=torch.long)], rows)
        yield from _pixels(images, images.permute(0, 2, 3, 1))


def network_input(swapper: Swapper, name: str, image: np.ndarray | Tensor) -> Tensor:
    """uint8, channels last -> (B, 3, R, R) in [-1, 1] on the swapper's device; `InputError` for another shape."""
    image = torch.as_tensor(image)
    size = swapper.config.size if swapper.config.generator == "drawn" else image.shape[-2] if image.ndim > 2 else 0
    if image.dtype != torch.uint8 or image.shape[-3:] != (size, size, 3) or image.ndim not in (3, 4):
        found = f"{str(image.dtype).removeprefix('torch.')} of shape {tuple(image.shape)}"
        expected = f"(B, {size}, {size}, 3)" if swapper.config.generator == "drawn" else "(B, R, R, 3)"
        raise InputError(f"{name}: found {found}, expected uint8 of shape {expected}")
    device = next(swapper.parameters()).device
    return to_float(image.reshape(-1, size, size, 3).permute(0, 3, 1, 2).to(device))  # (B, R, R, 3) -> (B, 3, R, R)


def _pixels(images: Tensor, like: np.ndarray | Tensor) -> np.ndarray:
    """(B, 3, S, S) in [-1, 1] -> uint8, channels last, with the leading dimensions of the input."""
    if not images.isfinite().all():
        raise InputError("output of the network: found numbers that are not finite, expected trained weights")
    return to_uint8(images).permute(0, 2, 3, 1).reshape(tuple(like.shape)).cpu().numpy()
