"""Two frozen judges that measure a swap and never take part in training it: an AU estimator and an identity embedder.

They learn from a data set of their own (another seed, so nobody in it is met in training or test), under random
shift, colour, blur and noise, so that a soft or shifted image is still read for what it shows. What they reach on true
renders of people they have not met is their ceiling: no swap can be expected to score above it. It stands in the
metadata of the weights, measured with the very numbers that ship (half precision).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from tqdm import tqdm

from expr_lib import WEIGHTS
from expr_lib.datasets import FaceData, to_float, to_uint8
from expr_lib.facs import AU_NAMES, MAX_INTENSITY
from expr_lib.files import replace_file, sha256
from expr_lib.importers.align import dlib_model
from expr_lib.measure.metrics import icc31, pearson

FORMAT = 1
SIZE = 64
"""Pixels a side at which the judges look; other sizes are resized first."""
FALSE_ACCEPTS = 0.01
"""Share of pairs of different people that the identity judge takes for one person."""
FALSE_ALARMS = 0.01
"""Share of held-out renders that are called unfamiliar."""


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


def _resize(image: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, 64, 64), bilinear, antialiased."""
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"image: found shape {tuple(image.shape)}, expected (B, 3, H, W)")
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
        image = _resize(image)
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
        return self.trunk(_resize(image))

    def embed(self, features: Tensor) -> Tensor:
        """Features -> unit embedding (B, 128)."""
        return F.normalize(self.head(features).float(), dim=1)

    def statistics(self, image: Tensor) -> Tensor:
        """Mean and spread over places of every channel after each of the four stages, (B, 22 * width): a fingerprint of
        what an image looks like, coarse and fine, whoever it shows."""
        x, parts = _resize(image), list[Tensor]()
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


# -- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgeConfig:
    """How both judges are trained; the defaults take some 8 minutes each for 12,000 images on two CPU cores."""

    epochs: int = 9
    batch_size: int = 32
    lr: float = 2e-3  # peak of the one-cycle schedule
    weight_decay: float = 0.02
    scale: float = 20.0  # CosFace: the softmax sees scale * (cosine - margin)
    margin: float = 0.2
    width: int = 32
    seed: int = 0
    bf16: bool = False  # faster on a GPU and on CPUs with matrix tiles, slower on others


def augment(image: Tensor, generator: torch.Generator | None = None, strength: float = 1.0) -> Tensor:
    """Random flip, shift (up to 2/64), colour, blur and noise, drawn for each image; (B, 3, S, S) in [-1, 1] -> same.

    AU labels hold for both sides of the face, and a mirrored person is taken for the same person. ``strength`` in
    [0, 1] scales all but the flip.
    """
    n, device = len(image), image.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator, device=device) * (high - low) + low

    theta = torch.zeros(n, 2, 3, device=device)  # affine maps of the sampling grid
    theta[:, 0, 0] = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)  # mirror
    theta[:, 1, 1] = 1.0
    theta[:, :, 2] = strength * uniform(-0.0625, 0.0625, 2)  # half widths: 2 of 32 pixels
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)  # (B, S, S, 2)
    image = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    gain, light, tint = uniform(-0.2, 0.2, 3, 1, 1), uniform(-0.1, 0.1, 1, 1, 1), uniform(-0.05, 0.05, 3, 1, 1)
    image = image * (1 + strength * gain) + strength * (light + tint)
    soft = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    image = torch.lerp(image, soft, strength * uniform(0, 1, 1, 1, 1) ** 2)  # mostly sharp
    noise = torch.randn(image.shape, generator=generator, device=device)
    return (image + strength * noise * uniform(0, 0.05, 1, 1, 1)).clamp(-1, 1)


def au_loss(raw: Tensor, au: Tensor, variance: Tensor) -> Tensor:
    """Squared error over the variance of each AU, so that rare AUs count as much as common ones; NaN is skipped.

    ``raw``, ``au``: (B, n_aus); ``variance``: (n_aus,). A scalar.
    """
    known = ~au.isnan()  # (B, n_aus)
    error = (raw - au)[known].square() / variance.expand_as(au)[known]  # of an AU never labelled the variance is NaN
    return error.sum() / known.sum().clamp(min=1)


def cosface_loss(embedding: Tensor, centres: Tensor, subject: Tensor, scale: float, margin: float) -> Tensor:
    """Cross-entropy of ``scale * (cos - margin at the true subject)``: large-margin cosine loss.

    ``embedding``: (B, D) of unit length; ``centres``: (n_subjects, D); ``subject``: (B,) int64. A scalar.
    Source: Wang et al., *CosFace: Large Margin Cosine Loss for Deep Face Recognition*, CVPR 2018, eq. 4.
    """
    cosine = embedding @ F.normalize(centres, dim=1).T  # (B, n_subjects)
    return F.cross_entropy(scale * (cosine - margin * F.one_hot(subject, len(centres))), subject)


def _fit(
    data: FaceData, parameters: list[nn.Parameter], loss_of: Callable[[Tensor, Tensor], Tensor], config: JudgeConfig,
    device: str, name: str, progress: bool,
) -> None:  # fmt: skip
    """AdamW on a one-cycle schedule; ``loss_of(augmented images, rows)`` is a scalar.

    Augmentation grows to full strength over the first half: in full from the start, the AU judge stays blind for long.
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
            image = augment(_resize(to_float(data.pixels(rows, device))), noise, min(1.0, 2 * done))
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.bf16):
                loss = loss_of(image.contiguous(memory_format=torch.channels_last), torch.from_numpy(rows).to(device))
            if not loss.isfinite():
                raise RuntimeError(f"{name}: the loss became {loss.item()}; expected a finite number: try a smaller lr")
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
    """Train an AU judge on the ``train`` rows of ``data``; eval mode."""
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
    """Train an identity judge to tell the ``train`` subjects of ``data`` apart; eval mode, threshold not yet set."""
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


# -- their ceilings on true renders of unseen people ---------------------------------------------------------------


@torch.no_grad()
def judge_all(
    judge: Callable[[Tensor], Tensor], data: FaceData, *, device: str = "cpu", batch_size: int = 256
) -> Tensor:
    """The judge's answer to every image of ``data``, in order, on the CPU: (N, n_aus) or (N, 128)."""
    parts = np.array_split(np.arange(len(data)), max(1, -(-len(data) // batch_size)))
    return torch.cat([judge(to_float(data.pixels(rows, device))).cpu() for rows in parts])


def au_ceilings(judged: Tensor, au: Tensor, au_names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Correlation and ICC(3,1) of ``judged`` with the labels ``au``, both (N, n_aus), for each AU and their mean."""
    r, icc = pearson(judged, au), icc31(judged, au)  # (n_aus,), (n_aus,)
    table = {n: {"r": float(x), "icc": float(y)} for n, x, y in zip(au_names, r, icc, strict=True)}
    return table | {"mean": {"r": float(r.nanmean()), "icc": float(icc.nanmean())}}


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


# -- a second opinion on identity ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DlibJudge:
    """dlib's face recognizer: image (B, 3, H, W) in [-1, 1] -> embedding (B, 128) of unit length, as `IdentityJudge`.

    Independent of everything here: made by others, from three million photographs, for other purposes. Needs the extra
    ``photographs``. Images are enlarged to 256 pixels; landmarks are looked for where our framing has the face, so that
    none can be missed. Rendered faces are no photographs: at 1 % false accepts it knows one person again in a quarter
    of the pairs of images (``ceilings``), at 64 pixels and at 128. Read it only beside what it says of the true render.
    Source: King, *High Quality Face Recognition with Deep Metric Learning*, dlib.net, 2017 (a ResNet of 29 layers).
    """

    landmarks: Any  # dlib.shape_predictor
    network: Any  # dlib.face_recognition_model_v1
    threshold: float = 0.0
    ceilings: dict[str, float] = field(default_factory=dict)

    def __call__(self, image: Tensor) -> Tensor:
        import dlib

        large = F.interpolate(image.cpu(), size=(256, 256), mode="bicubic", align_corners=False)
        box = dlib.rectangle(33, 38, 220, 225)  # where dlib's detector finds the face of a frontal render
        chips = [
            dlib.get_face_chip(face, self.landmarks(face, box), size=150, padding=0.25)
            for face in to_uint8(large).permute(0, 2, 3, 1).contiguous().numpy()  # (256, 256, 3) each
        ]
        embedding = torch.tensor(np.array(self.network.compute_face_descriptor(chips)), dtype=torch.float32)  # (B, 128)
        return F.normalize(embedding, dim=1).to(image.device)


def dlib_judge(faces: FaceData) -> DlibJudge:
    """dlib's recognizer, its threshold for such ``faces`` set on every second person, its ceilings from the others.

    Its own threshold is for photographs: all rendered faces look alike to it. ``ImportError`` without the extra.
    """
    landmarks = dlib_model("shape_predictor_68_face_landmarks.dat")
    network = dlib_model("dlib_face_recognition_resnet_model_v1.dat")
    import dlib

    judge = DlibJudge(dlib.shape_predictor(landmarks), dlib.face_recognition_model_v1(network))
    people = np.unique(faces.subject)
    first, second = (faces[np.isin(faces.subject, people[k::2])] for k in (0, 1))
    threshold, ceilings = acceptance(judge, first, second)
    return replace(judge, threshold=threshold, ceilings=ceilings)


# -- how far is an image from the faces that everything here was trained on? ----------------------------------------


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
    about = {"format": str(FORMAT), "judge": sha256(_paths(Path(folder))[1])}
    tensors = {"mean": familiar.mean, "spread": familiar.spread, "limit": torch.tensor(familiar.limit)}
    replace_file(path, serialize(tensors, about))


def load_familiar(judge: IdentityJudge, folder: str | Path = WEIGHTS) -> Familiar:
    """Read it back; ``FileNotFoundError``, or ``ValueError`` where it is damaged or of another judge."""
    path = Path(folder) / f"familiar-{SIZE}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected what `expr-lib judges` writes beside the judges")
    try:
        with safe_open(path, "pt") as file:
            found, (mean, spread, limit) = file.metadata(), map(file.get_tensor, ("mean", "spread", "limit"))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or not a safetensors file: {error}") from None
    if found.get("judge") != sha256(_paths(Path(folder))[1]):
        raise ValueError(f"{path}: made for another identity judge; run `expr-lib judges` again")
    return Familiar(judge, mean, spread, float(limit))


# -- files ---------------------------------------------------------------------------------------------------------


def save_judge(path: Path, judge: AUJudge | IdentityJudge) -> None:
    """Write weights (matrices in half precision) and ``judge.metadata`` as safetensors, to a temporary name first."""
    tensors = {
        name: (t.half() if t.ndim > 1 and t.is_floating_point() else t).contiguous().cpu()
        for name, t in judge.state_dict().items()
    }
    metadata = {"format": FORMAT, "kind": type(judge).__name__, "config": judge.config, **judge.metadata}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, serialize(tensors, {key: json.dumps(value) for key, value in metadata.items()}))


def load_judge(path: Path, kind: type[Judge], device: str = "cpu") -> Judge:
    """Read a judge of this class, frozen, in eval mode. Raises ``FileNotFoundError``, ``ValueError`` in one line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected the weights of a judge (made by `expr-lib judges`)")
    try:
        with safe_open(path, "pt") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged or not a safetensors file: {error}") from None
    found = (metadata.pop("kind", None), metadata.pop("format", None))
    if found != (kind.__name__, FORMAT):
        raise ValueError(f"{path}: found {found[0]} of format {found[1]}, expected {kind.__name__} of format {FORMAT}")
    try:
        judge = kind(**metadata.pop("config"))
        judge.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path}: not the weights of {kind.__name__}: {' '.join(str(error).split())}") from None
    judge.metadata = metadata
    return judge.to(device).requires_grad_(False).eval()


def _paths(folder: Path) -> tuple[Path, Path]:
    return folder / f"au-judge-{SIZE}.safetensors", folder / f"id-judge-{SIZE}.safetensors"


def load_judges(device: str = "cpu", folder: str | Path = WEIGHTS) -> Judges:
    """The two judges that ship with the project (or those of ``folder``), frozen and in eval mode."""
    au, identity = _paths(Path(folder))
    return Judges(load_judge(au, AUJudge, device), load_judge(identity, IdentityJudge, device))


def _finished(path: Path, kind: type[Judge], made: dict[str, Any]) -> bool:
    """Is there a judge already that was ``made`` so, with its ceilings?"""
    try:
        found = load_judge(path, kind).metadata
    except (FileNotFoundError, ValueError):
        return False
    return "ceilings" in found and json.dumps({key: found.get(key) for key in made}) == json.dumps(made)


def train_judges(
    folder: str | Path, out: str | Path = WEIGHTS, config: JudgeConfig | None = None, *,
    device: str = "cpu", progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Train both judges on the data set in ``folder`` and write them with their ceilings to ``out``.

    ``folder`` must hold people who are in no training and no test set: build it with a seed of its own. Learns from
    ``train`` and measures on ``val`` and ``test``; every second person there only helps to set the threshold of the
    identity judge, the others tell its ceiling. A judge that ``out`` already holds for the same data and config is
    kept, so an interrupted run goes on with the second judge. Returns the report, also written as ``judges-64.json``.
    """
    data, out, config = FaceData.open(folder), Path(out), config or JudgeConfig()
    held_out = data[data.split != "train"]
    people = np.unique(held_out.subject)
    if len(people) < 4:
        raise ValueError(f"{folder}: val and test: found {len(people)} subjects, expected at least 4")
    first, second = (held_out[np.isin(held_out.subject, people[k::2])] for k in (0, 1))
    made = {
        "data": {key: data.meta.get(key) for key in ("generator", "config", "sha256")},
        "training": asdict(config),
        "au_names": list(data.au_names),
    }
    au_path, id_path = _paths(out)

    if not _finished(au_path, AUJudge, made):
        au_judge = train_au_judge(data, config, device=device, progress=progress)
        save_judge(au_path, au_judge)
        au_judge = load_judge(au_path, AUJudge, device)  # measure what ships: half precision
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
