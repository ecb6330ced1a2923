"""How far is an image from the faces that everything here was trained on?"""

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
    """What held-out renders look like to the identity judge, and how far they stray: the scale for other images."""

    judge: IdentityJudge
    mean: Tensor  # (22 * width,) of their statistics
    spread: Tensor  # (22 * width,)
    limit: float = 1.0  # distance that a share FALSE_ALARMS of held-out renders exceeds

    @torch.no_grad()
    def distance(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> (B,), above 1: further than 99 of 100 held-out renders.

        Root mean square of the statistics in standard deviations, over ``limit``. It sees texture, colour and
        sharpness, little of the arrangement: below 1 is no promise that a swap will work. Our choice.
        """
        return self.strayed(self.judge.statistics(image).cpu())

    def strayed(self, statistics: Tensor) -> Tensor:
        """The same for images whose statistics are known: (B, 22 * width) -> (B,)."""
        return ((statistics - self.mean) / self.spread).square().mean(1).sqrt() / self.limit


def calibrate(judge: IdentityJudge, first: FaceData, second: FaceData, *, device: str = "cpu") -> Familiar:
    """Mean and spread of the statistics from the renders of ``first``, the limit from those of ``second``."""
    known, other = (judge_all(judge.statistics, data, device=device) for data in (first, second))  # (N, 22 * width)
    familiar = Familiar(judge, known.mean(0), known.std(0).clamp(min=1e-3))
    return replace(familiar, limit=float(familiar.strayed(other).quantile(1 - FALSE_ALARMS)))


def save_familiar(familiar: Familiar, folder: str | Path) -> None:
    """Write ``familiar-64.safetensors`` beside the judges of a folder; it belongs to that very identity judge."""
    path = Path(folder) / f"familiar-{SIZE}.safetensors"
    scale = {"mean": familiar.mean, "spread": familiar.spread, "limit": torch.tensor(familiar.limit)}
    tensors.write(path, scale, {"judge": sha256(judge_paths(Path(folder))[1])})


def load_familiar(judge: IdentityJudge, folder: str | Path = WEIGHTS) -> Familiar:
    """Read it back; ``FileNotFoundError``, or ``InputError`` where it is damaged or of another judge."""
    path = Path(folder) / f"familiar-{SIZE}.safetensors"

    def check(shapes: tensors.Shapes, about: dict[str, Any]) -> None:
        if checked(FamiliarFile, about, f"{path}: metadata").judge != sha256(judge_paths(Path(folder))[1]):
            raise InputError(f"{path}: made for another identity judge; run `expr-lib judges` again")
        row = torch.empty(22 * judge.config["width"], device="meta")
        tensors.fits({"mean": row, "spread": row, "limit": row.new_empty(())}, shapes, path)

    scale, _ = tensors.read(path, check, "what `expr-lib judges` writes beside the judges")
    if not (scale["spread"].min() > 0 and scale["limit"] > 0):
        raise InputError(f"{path}: spread and limit: found a number of 0 or less, expected positive ones")
    return Familiar(judge, scale["mean"], scale["spread"], float(scale["limit"]))
