"""Signals that an image differs from the rendered faces on which all networks were trained.

No single one finds every kind of stranger. Texture finds photographs, drawings and blur, but knows little of the
arrangement of a face. Reconstruction and mirror know more of it: they find faces upside down and what covers a face.
`python benchmarks/unfamiliar.py` measures each on many kinds of pictures, and the shares of false alarms and of hits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from expr_lib import WEIGHTS, tensors
from expr_lib.datasets import FaceData
from expr_lib.errors import InputError
from expr_lib.files import sha256
from expr_lib.importers.align import face_mask
from expr_lib.measure.judges import SIZE, IdentityJudge, judge_all, judge_paths, load_judges
from expr_lib.model import MovingDG, Swapper
from expr_lib.moving import resize
from expr_lib.schema import FamiliarFile, checked
from expr_lib.swap import load

FALSE_ALARMS = 0.01
"""Share of held-out renders that are called unfamiliar."""

SIGNALS = {
    "texture": "unusual texture, colours or sharpness",
    "reconstruction": "a part that the network cannot put together again, as if something covered the face",
    "mirror": "another expression is read from its mirror image, as if the face were turned",
}
"""What each signal tells."""
LIMITS = {"texture": 1.13, "reconstruction": 0.207, "mirror": 0.43}
"""Values that 1 in 300 rendered faces exceed: `python benchmarks/unfamiliar.py` prints them for the shipped weights."""


@dataclass(frozen=True)
class Familiar:
    """Mean and spread of the identity judge's statistics over held-out renders, the scale for other images."""

    judge: IdentityJudge
    mean: Tensor  # (22 * width,) of their statistics
    spread: Tensor  # (22 * width,)
    limit: float = 1.0  # distance that a share FALSE_ALARMS of held-out renders exceeds

    @torch.no_grad()
    def distance(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> distance (B,); above 1 if it exceeds that of 99 in 100 held-out renders.

        It is the root mean square of the statistics in standard deviations, over `limit`. It depends on texture,
        colour and sharpness but little on their arrangement, so a swap can fail below 1. Our choice.
        """
        return self.strayed(self.judge.statistics(image).cpu())

    def strayed(self, statistics: Tensor) -> Tensor:
        """The distance from the statistics of images: (B, 22 * width) -> (B,)."""
        return ((statistics - self.mean) / self.spread).square().mean(1).sqrt() / self.limit


def calibrate(judge: IdentityJudge, first: FaceData, second: FaceData, *, device: str = "cpu") -> Familiar:
    """Mean and spread of the statistics from the renders of `first`, the limit from those of `second`."""
    known, other = (judge_all(judge.statistics, data, device=device) for data in (first, second))  # (N, 22 * width)
    familiar = Familiar(judge, known.mean(0), known.std(0).clamp(min=1e-3))
    return replace(familiar, limit=float(familiar.strayed(other).quantile(1 - FALSE_ALARMS)))


def save_familiar(familiar: Familiar, folder: str | Path) -> None:
    """Write `familiar-64.safetensors` beside the judges of a folder; it is valid for that identity judge only."""
    path = Path(folder) / f"familiar-{SIZE}.safetensors"
    scale = {"mean": familiar.mean, "spread": familiar.spread, "limit": torch.tensor(familiar.limit)}
    tensors.write(path, scale, {"judge": sha256(judge_paths(Path(folder))[1])})


def load_familiar(judge: IdentityJudge, folder: str | Path = WEIGHTS) -> Familiar:
    """Read the scale of a judge; `FileNotFoundError`, or `InputError` if it is damaged or of another judge."""
    path = Path(folder) / f"familiar-{SIZE}.safetensors"

    def check(shapes: tensors.Shapes, about: dict[str, Any]) -> None:
        if checked(FamiliarFile, about, f"{path}: metadata").judge != sha256(judge_paths(Path(folder))[1]):
            raise InputError(f"{path}: made for another identity judge; run `expr-lib judges` again")
        row = torch.empty(22 * judge.config["width"], device="meta")
        tensors.fits({"mean": row, "spread": row, "limit": row.new_empty(())}, shapes, path)

    scale, _ = tensors.read(path, check, "the scale of the judge, made by `expr-lib judges`")
    if not (scale["spread"].min() > 0 and scale["limit"] > 0):
        raise InputError(f"{path}: spread and limit: found a number that is not positive, expected positive numbers")
    return Familiar(judge, scale["mean"], scale["spread"], float(scale["limit"]))


@dataclass(frozen=True)
class Unfamiliarity:
    """The three `SIGNALS` of an image, from the identity judge and a swapper of the second generation."""

    familiar: Familiar
    swapper: Swapper

    @torch.no_grad()
    def measure(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> the signals (B, 3) in the order of `SIGNALS`.

        `texture` is the distance of `Familiar`; `reconstruction` the mean error of the self-reconstruction, without the
        detail that is carried, in [0, 2], in the worst square of the face, an eighth of the side wide; `mirror` the
        mean difference of the intensities, in [0, 5], that are read from the image and from its mirror image. Our
        choice.
        """
        swapper, texture = self.swapper, self.familiar.distance(image)
        image = resize(image, swapper.config.size)  # (B, 3, S, S)
        net, features = swapper.DG, swapper.E(image)
        assert isinstance(net, MovingDG)
        f_r = net.related(features)
        rebuilt = net.put(net.take(image, features, f_r), net.free(features), f_r)
        error = (rebuilt - image).abs().mean(1, keepdim=True)  # (B, 1, S, S)
        error = error * torch.from_numpy(face_mask(error.shape[-1])).to(error)
        patch = max(1, error.shape[-1] // 8)
        reconstruction = F.avg_pool2d(error, patch, max(1, patch // 2)).amax((1, 2, 3))
        mirrored, _ = swapper.read_au(image.flip(-1))
        mirror = (swapper.intensities(f_r) - swapper.intensities(mirrored)).abs().mean(1)
        return torch.stack([texture.to(mirror), reconstruction, mirror], 1).cpu()

    def __call__(self, image: Tensor) -> tuple[Tensor, list[str]]:
        """Images as in `measure` -> the largest signal over its limit (B,), above 1 if unfamiliar, and its name."""
        share, which = (self.measure(image) / torch.tensor(list(LIMITS.values()))).max(1)
        return share, [list(LIMITS)[k] for k in which.tolist()]


def load_unfamiliarity() -> Unfamiliarity:
    """The signals of the shipped weights, for which `LIMITS` holds; errors as in `load_familiar` and `load`."""
    return Unfamiliarity(load_familiar(load_judges().identity), load())
