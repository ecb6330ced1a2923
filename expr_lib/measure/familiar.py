"""A measure of how much an image differs from the rendered faces on which all networks were trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expr_lib import WEIGHTS, tensors
from expr_lib.datasets import FaceData
from expr_lib.errors import InputError
from expr_lib.files import sha256
from expr_lib.measure.judges import SIZE, IdentityJudge, judge_all, judge_paths
from expr_lib.schema import FamiliarFile, checked

FALSE_ALARMS = 0.01
"""Share of held-out renders that are called unfamiliar."""


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
