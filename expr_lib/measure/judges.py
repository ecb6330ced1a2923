"""Two frozen judges that measure a swap and never take part in training it: an AU estimator and an identity embedder.

They learn from a data set of their own (another seed, so nobody in it is met in training or test): see
:mod:`~expr_lib.measure.train_judges`. What they reach on true renders of people they have not met is their ceiling: no
swap can be expected to score above it. It stands in the metadata of the weights, measured with the very numbers that
ship (half precision).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expr_lib import WEIGHTS, tensors
from expr_lib.datasets import FaceData, to_float
from expr_lib.errors import InputError
from expr_lib.facs import AU_NAMES, MAX_INTENSITY
from expr_lib.schema import JudgeFile, checked

SIZE = 64
"""Pixels a side at which the judges look; other sizes are resized first."""
FALSE_ACCEPTS = 0.01
"""Share of pairs of different people that the identity judge takes for one person."""


# -- the two networks ----------------------------------------------------------------------------------------------


def _conv(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(width, width), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def _trunk(width: int) -> nn.Sequential:
    """A small residual network with batch norm: (B, 3, 64, 64) -> (B, 64 * width), places kept apart."""
    return nn.Sequential(
        nn.PixelUnshuffle(2),  # (B, 3, 64, 64) -> (B, 12, 32, 32): nothing is lost before the first layer
        _conv(12, width),
        _Residual(width),
        _conv(width, 2 * width, stride=2),  # (B, 2w, 16, 16)
        _Residual(2 * width),
        _conv(2 * width, 4 * width, stride=2),  # (B, 4w, 8, 8)
        _Residual(4 * width),
        _conv(4 * width, 4 * width, stride=2),  # (B, 4w, 4, 4)
        nn.Flatten(),  # (B, 64w)
        nn.Dropout(0.2),
    )


def resize(image: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, 64, 64), bilinear, antialiased."""
    if image.ndim != 4 or image.shape[1] != 3:
        raise InputError(f"image: found shape {tuple(image.shape)}, expected (B, 3, H, W)")
    if image.shape[2:] == (SIZE, SIZE):
        return image
    return F.interpolate(image, size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)


class AUJudge(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] -> intensities (B, n_aus) in [0, 5], the FACS scale."""

    def __init__(self, n_aus: int = len(AU_NAMES), width: int = 32) -> None:
        super().__init__()
        self.config = {"n_aus": n_aus, "width": width}
        self.trunk = _trunk(width)
        self.head = nn.Linear(64 * width, n_aus)
        self.metadata: dict[str, Any] = {}

    def raw(self, image: Tensor) -> Tensor:
        """Intensities before they are clamped, (B, n_aus): what training regresses, so that 0 has a gradient.

        Each image is standardized first: skin tone and light are most of what differs between images and nothing of
        what this judge is asked. Without that it takes far longer until it sees any expression.
        """
        image = resize(image)
        mean, std = image.mean((2, 3), keepdim=True), image.std((1, 2, 3), keepdim=True)  # (B, 3, 1, 1), (B, 1, 1, 1)
        return self.head(self.trunk((image - mean) / (std + 1e-3)))

    def forward(self, image: Tensor) -> Tensor:
        return self.raw(image).float().clamp(0, MAX_INTENSITY)


class IdentityJudge(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] -> embedding (B, 128) of unit length; above ``threshold``, two show one person.

    ``threshold`` is the cosine that a share ``FALSE_ACCEPTS`` of the pairs of two different, unseen people exceeds.
    """

    def __init__(self, width: int = 32, dim: int = 128) -> None:
        super().__init__()
        self.config = {"width": width, "dim": dim}
        self.trunk = _trunk(width)
        self.head = nn.Sequential(nn.Linear(64 * width, dim, bias=False), nn.BatchNorm1d(dim))
        self.metadata: dict[str, Any] = {}

    @property
    def threshold(self) -> float:
        """Cosine above which two images are accepted as one person; ``KeyError`` where it was never measured."""
        return float(self.metadata["threshold"])

    def features(self, image: Tensor) -> Tensor:
        """What the embedding is made of, (B, 64 * width): also what the image looks like, on which KID is computed."""
        return self.trunk(resize(image))

    def embed(self, features: Tensor) -> Tensor:
        """Features -> unit embedding (B, 128)."""
        return F.normalize(self.head(features).float(), dim=1)

    def statistics(self, image: Tensor) -> Tensor:
        """Mean and spread over places of every channel after each of the four stages, (B, 22 * width): a fingerprint of
        what an image looks like, coarse and fine, whoever it shows."""
        x, parts = resize(image), list[Tensor]()
        for k, layer in enumerate(list(self.trunk)[:8]):
            x = layer(x)
            if k in (2, 4, 6, 7):  # the residual blocks and the last convolution
                parts += [x.mean((2, 3)).float(), x.std((2, 3)).float()]  # (B, C) each
        return torch.cat(parts, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.embed(self.features(image))


Judge = TypeVar("Judge", AUJudge, IdentityJudge)


class Judges(NamedTuple):
    """The pair of judges, frozen and in eval mode."""

    au: AUJudge
    identity: IdentityJudge


# -- what they answer ----------------------------------------------------------------------------------------------


@torch.no_grad()
def judge_all(
    judge: Callable[[Tensor], Tensor], data: FaceData, *, device: str = "cpu", batch_size: int = 256
) -> Tensor:
    """The judge's answer to every image of ``data``, in order, on the CPU: (N, n_aus) or (N, 128)."""
    parts = np.array_split(np.arange(len(data)), max(1, -(-len(data) // batch_size)))
    return torch.cat([judge(to_float(data.pixels(rows, device))).cpu() for rows in parts])


def pair_cosines(embedding: Tensor, subject: np.ndarray, *, limit: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all pairs -> (of one person, of two people), both 1-D; only the first ``limit`` of a seeded shuffle.

    ``embedding``: (N, D) of unit length; ``subject``: (N,).
    """
    rows = np.random.default_rng(0).permutation(len(subject))[:limit]
    e, s = embedding.numpy()[rows], subject[rows]
    upper = np.triu_indices(len(rows), k=1)
    cosine, same = (e @ e.T)[upper], (s[:, None] == s[None, :])[upper]
    return cosine[same], cosine[~same]


def acceptance(judge: Callable[[Tensor], Tensor], first: FaceData, second: FaceData, *, device: str = "cpu") -> tuple[
    float, dict[str, float]
]:  # fmt: skip
    """Threshold of an identity judge, set on the people of ``first``, and its ceilings on those of ``second``.

    The threshold is the cosine that a share ``FALSE_ACCEPTS`` of the pairs of different people exceeds.
    """
    _, others = pair_cosines(judge_all(judge, first, device=device), first.subject)
    threshold = float(np.quantile(others, 1 - FALSE_ACCEPTS))
    one, two = pair_cosines(judge_all(judge, second, device=device), second.subject)
    return threshold, {
        "true_accepts": float((one > threshold).mean()),
        "false_accepts": float((two > threshold).mean()),
        "subjects": len(np.unique(second.subject)),
    }


# -- files ---------------------------------------------------------------------------------------------------------


def save_judge(path: Path, judge: AUJudge | IdentityJudge) -> None:
    """Write weights (matrices in half precision) and ``judge.metadata``, whole or not at all."""
    weights = {name: t.half() if t.ndim > 1 and t.is_floating_point() else t for name, t in judge.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors.write(path, weights, {"kind": type(judge).__name__, "config": judge.config, **judge.metadata})


def load_judge(path: Path, kind: type[Judge], device: str = "cpu") -> Judge:
    """Read a judge of this class, frozen, in eval mode. Raises ``FileNotFoundError``, ``InputError`` in one line."""

    def build(about: dict[str, Any]) -> Judge:
        made = checked(JudgeFile, about, f"{path}: metadata")
        if made.kind != kind.__name__:
            raise InputError(f"{path}: found {made.kind}, expected {kind.__name__}")
        try:
            return kind(**made.config)
        except TypeError:
            names = ", ".join(made.config)
            raise InputError(
                f"{path}: metadata: config: found {names}, expected what {made.kind} is built with"
            ) from None

    def check(shapes: tensors.Shapes, about: dict[str, Any]) -> None:
        with torch.device("meta"):
            own = build(about)
        tensors.fits(own.state_dict(), shapes, path)

    weights, about = tensors.read(path, check, "the weights of a judge, made by `expr-lib judges`")
    judge = build(about)
    judge.load_state_dict(weights)
    judge.metadata = {key: about[key] for key in about if key not in ("kind", "config", "format", "sha256")}
    return judge.to(device).requires_grad_(False).eval()


def judge_paths(folder: Path) -> tuple[Path, Path]:
    return folder / f"au-judge-{SIZE}.safetensors", folder / f"id-judge-{SIZE}.safetensors"


def load_judges(device: str = "cpu", folder: str | Path = WEIGHTS) -> Judges:
    """The two judges that ship with the project (or those of ``folder``), frozen and in eval mode."""
    au, identity = judge_paths(Path(folder))
    return Judges(load_judge(au, AUJudge, device), load_judge(identity, IdentityJudge, device))
