"""Training of the two judges and of their ceilings (`expr-lib judges`).

The images are augmented by random shift, colour, blur and noise, so that the judges can read blurred or shifted images.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from expr_lib import WEIGHTS
from expr_lib.datasets import FaceData, to_float
from expr_lib.errors import MAX_SEED, InputError, check_range
from expr_lib.files import replace_file
from expr_lib.measure.familiar import calibrate, save_familiar
from expr_lib.measure.judges import (
    SIZE,
    AUJudge,
    IdentityJudge,
    Judge,
    acceptance,
    judge_all,
    judge_paths,
    load_judge,
    load_judges,
    resize,
    save_judge,
)
from expr_lib.measure.metrics import icc31, pearson


@dataclass(frozen=True)
class JudgeConfig:
    """Settings for both judges; with the defaults, each takes some 8 minutes for 12,000 images on two CPU cores."""

    epochs: int = 9  # passes over the data
    batch_size: int = 32  # images
    lr: float = 2e-3  # peak of the one-cycle schedule
    weight_decay: float = 0.02  # of AdamW
    scale: float = 20.0  # CosFace: the softmax of scale * (cosine - margin)
    margin: float = 0.2  # CosFace: margin between the cosine of the true class and those of the others
    width: int = 32  # channels of the first layer
    seed: int = 0  # of the weights, the order of the images and the changes to them
    bf16: bool = False  # faster on a GPU and on CPUs with matrix tiles, slower on others

    def __post_init__(self) -> None:
        check_range(
            self, epochs=(1, 100_000), batch_size=(2, 65_536), lr=(1e-9, 1), weight_decay=(0, 10), scale=(1e-3, 1e4),
            margin=(0, 1), width=(1, 512), seed=(0, MAX_SEED),
        )  # fmt: skip


def augment_for_judges(image: Tensor, generator: torch.Generator | None = None, strength: float = 1.0) -> Tensor:
    """Random flip, shift (up to 2/64), colour, blur and noise per image: (B, 3, S, S) in [-1, 1] -> the same shape.

    AU labels hold for both sides of the face, and a mirrored person counts as the same person. `strength` in [0, 1]
    scales everything except the flip.
    """
    n, device = len(image), image.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator, device=device) * (high - low) + low

    theta = torch.zeros(n, 2, 3, device=device)  # affine maps of the sampling grid
    theta[:, 0, 0] = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)  # mirror
    theta[:, 1, 1] = 1.0
    theta[:, :, 2] = strength * uniform(-0.0625, 0.0625, 2)  # of half the width, i.e. 2 of 32 pixels
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)  # (B, S, S, 2)
    image = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    gain, light, tint = uniform(-0.2, 0.2, 3, 1, 1), uniform(-0.1, 0.1, 1, 1, 1), uniform(-0.05, 0.05, 3, 1, 1)
    image = image * (1 + strength * gain) + strength * (light + tint)
    soft = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    image = torch.lerp(image, soft, strength * uniform(0, 1, 1, 1, 1) ** 2)  # mostly sharp
    noise = torch.randn(image.shape, generator=generator, device=device)
    return (image + strength * noise * uniform(0, 0.05, 1, 1, 1)).clamp(-1, 1)


def au_loss(raw: Tensor, au: Tensor, variance: Tensor) -> Tensor:
    """Squared error over the variance of each AU, so that rare AUs count as much as common ones; NaN is ignored.

    `raw`, `au`: (B, n_aus); `variance`: (n_aus,). A scalar.
    """
    known = ~au.isnan()  # (B, n_aus)
    error = (raw - au)[known].square() / variance.expand_as(au)[known]  # the variance of an AU without labels is NaN
    return error.sum() / known.sum().clamp(min=1)


def cosface_loss(embedding: Tensor, centres: Tensor, subject: Tensor, scale: float, margin: float) -> Tensor:
    """Cross-entropy of `scale * (cos - margin at the true subject)`: large-margin cosine loss.

    `embedding`: (B, D) of unit length; `centres`: (n_subjects, D); `subject`: (B,) int64. A scalar.
    Source: Wang et al., *CosFace: Large Margin Cosine Loss for Deep Face Recognition*, CVPR 2018, eq. 4.
    """
    cosine = embedding @ F.normalize(centres, dim=1).T  # (B, n_subjects)
    return F.cross_entropy(scale * (cosine - margin * F.one_hot(subject, len(centres))), subject)


def _fit(
    data: FaceData, parameters: list[nn.Parameter], loss_of: Callable[[Tensor, Tensor], Tensor], config: JudgeConfig,
    device: str, name: str, progress: bool,
) -> None:  # fmt: skip
    """AdamW on a one-cycle schedule; `loss_of(augmented images, rows)` is a scalar.

    Augmentation increases over the first half, because with full augmentation from the start learning begins late.
    """
    rng = np.random.default_rng(config.seed)
    noise = torch.Generator(device).manual_seed(config.seed)
    batch = min(config.batch_size, len(data))
    steps = config.epochs * (len(data) // batch)
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps + 1, pct_start=0.2)
    bar = tqdm(total=steps * batch, desc=name, unit="img", disable=not progress)
    for epoch in range(config.epochs):
        for k, rows in enumerate(rng.permutation(len(data))[: len(data) // batch * batch].reshape(-1, batch)):
            done = (epoch + k * batch / len(data)) / config.epochs
            image = augment_for_judges(resize(to_float(data.pixels(rows, device))), noise, min(1.0, 2 * done))
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.bf16):
                loss = loss_of(image.contiguous(memory_format=torch.channels_last), torch.from_numpy(rows).to(device))
            if not loss.isfinite():
                raise RuntimeError(f"{name}: found loss {loss.item()}, expected a finite number; try a smaller lr")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update(batch)
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()


def train_au_judge(
    data: FaceData, config: JudgeConfig | None = None, *, device: str = "cpu", progress: bool = True
) -> AUJudge:
    """Train an AU judge on the `train` rows of `data`; returns it in eval mode."""
    config, train = config or JudgeConfig(), data.subset("train")
    torch.manual_seed(config.seed + 101)
    judge = AUJudge(len(data.au_names), config.width).to(device).train()
    au = torch.from_numpy(train.au).to(device)  # (N, n_aus)
    mean = au.nanmean(0)  # (n_aus,)
    variance = (au - mean).square().nanmean(0).clamp(min=0.05)
    with torch.no_grad():
        judge.head.bias.copy_(mean.nan_to_num())
    _fit(
        train, list(judge.parameters()), lambda image, rows: au_loss(judge.raw(image).float(), au[rows], variance),
        config, device, "AU judge", progress,
    )  # fmt: skip
    return judge.eval()


def train_identity_judge(
    data: FaceData, config: JudgeConfig | None = None, *, device: str = "cpu", progress: bool = True
) -> IdentityJudge:
    """Train an identity judge on the `train` rows of `data`; returns it in eval mode, without a threshold."""
    config, train = config or JudgeConfig(), data.subset("train")
    torch.manual_seed(config.seed + 202)
    judge = IdentityJudge(config.width).to(device).train()
    names, index = np.unique(train.subject, return_inverse=True)
    subject = torch.from_numpy(index).to(device)  # (N,) in 0 .. n_subjects - 1
    centres = nn.Parameter(torch.randn(len(names), judge.config["dim"], device=device))

    def loss_of(image: Tensor, rows: Tensor) -> Tensor:
        return cosface_loss(judge(image), centres, subject[rows], config.scale, config.margin)

    _fit(train, [*judge.parameters(), centres], loss_of, config, device, "identity judge", progress)
    return judge.eval()


# -- both, with their ceilings on true renders of unseen people ------------------------------------------------------


def au_ceilings(judged: Tensor, au: Tensor, au_names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Correlation and ICC(3,1) of `judged` with the labels `au`, both (N, n_aus), for each AU and their mean."""
    r, icc = pearson(judged, au), icc31(judged, au)  # (n_aus,), (n_aus,)
    table = {n: {"r": float(x), "icc": float(y)} for n, x, y in zip(au_names, r, icc, strict=True)}
    return table | {"mean": {"r": float(r.nanmean()), "icc": float(icc.nanmean())}}


def _finished(path: Path, kind: type[Judge], made: dict[str, Any]) -> bool:
    """Whether `path` has a judge with ceilings and these settings."""
    try:
        found = load_judge(path, kind).metadata
    except (FileNotFoundError, InputError):
        return False
    return "ceilings" in found and json.dumps({key: found.get(key) for key in made}) == json.dumps(made)


def train_judges(
    folder: str | Path, out: str | Path = WEIGHTS, config: JudgeConfig | None = None, *,
    device: str = "cpu", progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Train both judges on the data set in `folder` and write them with their ceilings to `out`.

    The people in `folder` must be in no other training or test set, so build it with a separate seed. The judges
    learn from `train` and are measured on `val` and `test`, where every second person sets the threshold of the
    identity judge and the others its ceiling. An existing judge in `out` for the same data and config is kept, so
    that an interrupted run continues with the second judge. Returns the report, also written as `judges-64.json`.
    """
    data, out, config = FaceData.open(folder), Path(out), config or JudgeConfig()
    held_out = data[data.split != "train"]
    people = np.unique(held_out.subject)
    if len(data) - len(held_out) < 2:
        raise InputError(f"{folder}: train: found {len(data) - len(held_out)} images, expected at least 2")
    if len(people) < 4:
        raise InputError(f"{folder}: val and test: found {len(people)} subjects, expected at least 4")
    first, second = (held_out[np.isin(held_out.subject, people[k::2])] for k in (0, 1))
    made = {
        "data": {key: data.meta.get(key) for key in ("generator", "config", "sha256")},
        "training": asdict(config),
        "au_names": list(data.au_names),
    }
    au_path, id_path = judge_paths(out)

    if not _finished(au_path, AUJudge, made):
        au_judge = train_au_judge(data, config, device=device, progress=progress)
        save_judge(au_path, au_judge)
        au_judge = load_judge(au_path, AUJudge, device)  # measure the stored weights, in half precision
        judged = judge_all(au_judge, held_out, device=device)  # (N, n_aus)
        ceilings = au_ceilings(judged, torch.from_numpy(held_out.au), data.au_names)
        au_judge.metadata = made | {"ceilings": ceilings}
        save_judge(au_path, au_judge)
    if not _finished(id_path, IdentityJudge, made):
        id_judge = train_identity_judge(data, config, device=device, progress=progress)
        save_judge(id_path, id_judge)
        id_judge = load_judge(id_path, IdentityJudge, device)
        threshold, accepted = acceptance(id_judge, first, second, device=device)
        id_judge.metadata = made | {"threshold": threshold, "ceilings": accepted}
        save_judge(id_path, id_judge)

    judges = load_judges(device, out)
    save_familiar(calibrate(judges.identity, first, second, device=device), out)
    report = made | {
        "images": {"train": len(data) - len(held_out), "held out": len(held_out)},
        "au": judges.au.metadata["ceilings"],
        "identity": {"threshold": judges.identity.threshold, **judges.identity.metadata["ceilings"]},
        "bytes": {path.name: path.stat().st_size for path in (au_path, id_path)},
    }
    replace_file(out / f"judges-{SIZE}.json", (json.dumps(report, indent=2) + "\n").encode())
    return report
