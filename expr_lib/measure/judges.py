"""Two frozen judges that measure swaps and take no part in their training: an AU estimator and an identity embedder.

They are trained on a separate data set with other people, see `measure.train_judges`. Their scores on
true renders of new people are their ceilings, since no swap can be expected to score higher. The ceilings are measured
with the weights as stored (half precision) and are in the metadata of the weights.
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
"""Side of the judges' input in pixels; images of other sizes are resized."""
FALSE_ACCEPTS = 0.01
"""Share of pairs of different people that the identity judge accepts as the same person."""


# -- the two networks ------------------------------------------------------------------------------------------------


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
    """A small residual network with batch norm: (B, 3, 64, 64) -> (B, 64 * width), with places kept apart."""
    return nn.Sequential(
        nn.PixelUnshuffle(2),  # (B, 3, 64, 64) -> (B, 12, 32, 32), without loss
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
        """Intensities before clamping, (B, n_aus), used in training so that there is a gradient at 0.

        Each image is standardized first, because skin tone and light differ most between images but do not matter
        here. Without this, training takes far longer.
        """
        image = resize(image)
        mean, std = image.mean((2, 3), keepdim=True), image.std((1, 2, 3), keepdim=True)  # (B, 3, 1, 1), (B, 1, 1, 1)
        return self.head(self.trunk((image - mean) / (std + 1e-3)))

    def forward(self, image: Tensor) -> Tensor:
        return self.raw(image).float().clamp(0, MAX_INTENSITY)


class IdentityJudge(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] -> embedding (B, 128) of unit length.

    Two images are accepted as one person if the cosine of their embeddings exceeds `threshold`, which a share
    `FALSE_ACCEPTS` of the pairs of different, unseen people does.
    """

    def __init__(self, width: int = 32, dim: int = 128) -> None:
        super().__init__()
        self.config = {"width": width, "dim": dim}
        self.trunk = _trunk(width)
        self.head = nn.Sequential(nn.Linear(64 * width, dim, bias=False), nn.BatchNorm1d(dim))
        self.metadata: dict[str, Any] = {}

    @property
    def threshold(self) -> float:
        """Cosine above which two images are accepted as one person; `KeyError` if it has not been measured."""
        return float(self.metadata["threshold"])

    def features(self, image: Tensor) -> Tensor:
        """The input of the embedding, (B, 64 * width), on which KID is computed, too."""
        return self.trunk(resize(image))

    def embed(self, features: Tensor) -> Tensor:
        """Features -> unit embedding (B, 128)."""
        return F.normalize(self.head(features).float(), dim=1)

    def statistics(self, image: Tensor) -> Tensor:
        """Mean and spread over places of every channel after each of the four stages, (B, 22 * width).

        They describe the appearance of an image, coarse and fine, independently of the person.
        """
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


# -- applying them ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def judge_all(judge: Callable[[Tensor], Tensor], data: FaceData, *, device: str = "cpu") -> Tensor:
    """Outputs of a judge for all images of `data`, in order, on the CPU: (N, n_aus) or (N, 128)."""
    parts = np.array_split(np.arange(len(data)), max(1, -(-len(data) // 256)))
    return torch.cat([judge(to_float(data.pixels(rows, device))).cpu() for rows in parts])


def pair_cosines(embedding: Tensor, subject: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all pairs -> (of one person, of two people), both 1-D, among at most 4,000 images, drawn at random.

    `embedding`: (N, D) of unit length; `subject`: (N,).
    """
    rows = np.random.default_rng(0).permutation(len(subject))[:4000]
    e, s = embedding.numpy()[rows], subject[rows]
    upper = np.triu_indices(len(rows), k=1)
    cosine, same = (e @ e.T)[upper], (s[:, None] == s[None, :])[upper]
    return cosine[same], cosine[~same]


def acceptance(judge: Callable[[Tensor], Tensor], first: FaceData, second: FaceData, *, device: str = "cpu") -> tuple[
    float, dict[str, float]
]:  # fmt: skip
    """Threshold of an identity judge, set on the people of `first`, and its ceilings on those of `second`.

    The threshold is the cosine that a share `FALSE_ACCEPTS` of the pairs of different people exceeds.
    """
    _, others = pair_cosines(judge_all(judge, first, device=device), first.subject)
    threshold = float(np.quantile(others, 1 - FALSE_ACCEPTS))
    one, two = pair_cosines(judge_all(judge, second, device=device), second.subject)
    return threshold, {
        "true_accepts": float((one > threshold).mean()),
        "false_accepts": float((two > threshold).mean()),
        "subjects": len(np.unique(second.subject)),
    }


# -- files -----------------------------------------------------------------------------------------------------------


def save_judge(path: Path, judge: AUJudge | IdentityJudge) -> None:
    """Write weights (matrices in half precision) and `judge.metadata`, whole or not at all."""
    weights = {name: t.half() if t.ndim > 1 and t.is_floating_point() else t for name, t in judge.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors.write(path, weights, {"kind": type(judge).__name__, "config": judge.config, **judge.metadata})


def load_judge(path: Path, kind: type[Judge], device: str = "cpu") -> Judge:
    """Read a judge of this class, frozen, in eval mode. Raises `FileNotFoundError`, `InputError` in one line."""

    def build(about: dict[str, Any]) -> Judge:
        made = checked(JudgeFile, about, f"{path}: metadata")
        if made.kind != kind.__name__:
            raise InputError(f"{path}: found {made.kind}, expected {kind.__name__}")
        try:
            return kind(**made.config)
        except TypeError:
            names = ", ".join(made.config)
            raise InputError(
                f"{path}: metadata: config: found {names}, expected the arguments of {made.kind}"
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
    """The two judges that ship with the project (or those of `folder`), frozen and in eval mode."""
    au, identity = judge_paths(Path(folder))
    return Judges(load_judge(au, AUJudge, device), load_judge(identity, IdentityJudge, device))
