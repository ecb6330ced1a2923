"""Two published ways to edit an expression by labels, implemented from their papers.

- `GANimation`  is told the AU intensities of b. Pumarola et al., *GANimation*, ECCV 2018
- `StarGAN`     is told the AU classes of b. Choi et al., *StarGAN*, CVPR 2018

At run time an estimator must read the AUs of b, which is the guidance that the paper argues against (`branch`). To the
evaluation both look like ours: `encode(image) -> f_f, f_r`, `generate(f_f, f_r) -> image`, where f_f is the image and
f_r the AUs read from it.

Deviations from the papers that both share; the others are described where they occur. The critic has as many layers as
leave a map of 2 x 2, at most six, as published for 128 pixels. Faces are mirrored as ours are. The target is the
expression of the other face of the pair. Averaged weights (EMA) are measured, as ours are. The published width is 64;
with the width of `like_ours` a baseline has as many parameters as our method.

StarGAN's generator draws the whole face anew. In 2,400 steps of 8 pairs it did not learn to, so here it draws a change
that is added to the image. In both papers instance norm follows the first layer. It subtracts the mean of each map, and
with it what a label, which is the same everywhere, adds to the map, so that norm is left out. The label head of a
critic learns to read expressions slowly, and an editor cannot learn from it earlier. In a short training an editor may
therefore also have a `guide`: our frozen AU branch, which reads each edit as it reads our own swaps.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from expr_lib import checkpoint
from expr_lib.datasets import FaceData
from expr_lib.facs import MAX_INTENSITY
from expr_lib.losses import weighted_mean
from expr_lib.model import ModelConfig, Swapper, au_classes
from expr_lib.run import CHECKPOINT, all_tensors, restore
from expr_lib.signals import stop_signals
from expr_lib.step import Batch, TrainConfig, augment, frozen, partner
from expr_lib.train import accelerator, average, batches_from

METHODS = ("GANimation", "StarGAN")
Estimator = Callable[[Tensor], Tensor]
"""image (B, 3, S, S) in [-1, 1] -> AU intensities (B, n) in [0, 5]."""


@dataclass(frozen=True)
class BaselineConfig:
    """Sizes of a baseline; the defaults are the published ones, but for the image size."""

    size: int = 64  # S, pixels; a multiple of 16
    n_aus: int = 17  # n
    width: int = 64  # channels of the first layer of every network
    blocks: int = 6  # residual blocks of the generator
    levels: int = 4  # AU classes that the StarGAN-style editor knows, as our adversary
    critic_steps: int = 5  # batches from which the critic learns, for each from which the generator learns
    lr: float = 1e-4


# ------------------------------------------------------------------------------------------------------- guidance


def branch(swapper: Swapper) -> Estimator:
    """The AU branch of a trained swapper as estimator: it met the same training people, and no judge."""
    size = swapper.config.size

    @torch.no_grad()
    def read(image: Tensor) -> Tensor:
        if image.shape[-1] != size:
            image = F.interpolate(image, (size, size), mode="bilinear", antialias=True)  # (B, 3, s, s)
        return swapper.intensities(swapper.read_au(image)[0])

    return read


# ------------------------------------------------------------------------------------------------ networks, in parts


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, instance norm, ReLU; the side shrinks by the stride."""
    padding = (kernel - stride + 1) // 2
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False), nn.InstanceNorm2d(c_out, affine=True), nn.ReLU()
    )


def up(c_in: int, c_out: int) -> nn.Sequential:
    """Transposed convolution, instance norm, ReLU; the side doubles."""
    return nn.Sequential(
        nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False), nn.InstanceNorm2d(c_out, affine=True), nn.ReLU()
    )


class Residual(nn.Module):
    """Residual block with instance norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, 1, 1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = (nn.InstanceNorm2d(channels, affine=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))


class Painter(nn.Module):
    """StarGAN's generator: image (B, 3, S, S), what is asked (B, K) -> image (B, 3, S, S), mask (B, 1, S, S) or None.

    With `masked` (GANimation) it paints colours and says where: mask 0 leaves the pixel as it is. Without, it paints
    a change that is added to the image.
    """

    def __init__(self, c: BaselineConfig, n_asked: int, masked: bool = False) -> None:
        super().__init__()
        w = c.width
        # no norm here: what is asked is constant over the image, and instance norm would remove what it adds
        self.stem = nn.Sequential(nn.Conv2d(3 + n_asked, w, 7, 1, 3), nn.ReLU())
        self.net = nn.Sequential(
            conv(w, 2 * w, 4, 2), conv(2 * w, 4 * w, 4, 2),  # (B, 4w, S/4, S/4)
            *(Residual(4 * w) for _ in range(c.blocks)), up(4 * w, 2 * w), up(2 * w, w),  # (B, w, S, S)
        )  # fmt: skip
        self.color = nn.Conv2d(w, 3, 7, 1, 3)
        self.mask = nn.Conv2d(w, 1, 7, 1, 3) if masked else None

    def forward(self, image: Tensor, asked: Tensor) -> tuple[Tensor, Tensor | None]:
        maps = asked[:, :, None, None].expand(-1, -1, *image.shape[2:])  # (B, K) -> (B, K, S, S)
        h = self.net(self.stem(torch.cat([image, maps], 1)))
        color = self.color(h).float().tanh()
        if self.mask is None:
            return image + color, None
        mask = self.mask(h).float().sigmoid()
        return mask * color + (1 - mask) * image, mask


class Critic(nn.Module):
    """StarGAN's critic: image (B, 3, S, S) -> patch scores (B, 1, 2, 2) and label scores (B, K); no norm."""

    def __init__(self, c: BaselineConfig, n_labels: int) -> None:
        super().__init__()
        layers = min(6, c.size.bit_length() - 2)
        widths = [3, *(c.width * 2**k for k in range(layers))]
        steps = (nn.Sequential(nn.Conv2d(i, o, 4, 2, 1), nn.LeakyReLU(0.01)) for i, o in pairwise(widths))
        self.trunk = nn.Sequential(*steps)  # (B, 2^(layers-1) w, S / 2^layers, S / 2^layers)
        self.score = nn.Conv2d(widths[-1], 1, 3, 1, 1, bias=False)
        self.labels = nn.Conv2d(widths[-1], n_labels, c.size >> layers, bias=False) if n_labels else None

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(image)
        labels = h.new_zeros(len(h), 0) if self.labels is None else self.labels(h)[:, :, 0, 0]  # (B, K)
        return self.score(h).float(), labels.float()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """L = mean (|grad_x critic(x)| - 1)^2,  x somewhere between a real and a fake image, the score a sum over patches.

    A sum here but a mean in the other losses, as in the code of StarGAN and GANimation; with the mean in both, realism
    would pull four times as hard. In the precision of the rest: in bf16 one such loss differed from float32 by 0.1 %,
    the direction of its gradient by nothing. Source: WGAN-GP (Gulrajani et al., NeurIPS 2017).
    """
    t = torch.rand(len(real), 1, 1, 1, device=real.device)
    x = torch.lerp(fake, real, t).requires_grad_()
    score = critic(x.view_as(x)).sum()  # a view, as torch's FLOP counter stumbles over leaves here
    (gradient,) = torch.autograd.grad(score, x, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def adam(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr, betas=(0.5, 0.999), fused=True)


def optimizer_step(optimizer: torch.optim.Optimizer, loss: dict[str, Tensor]) -> dict[str, Tensor]:
    """One step along the gradient of the sum of the losses."""
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(loss.values())).sum().backward()
    optimizer.step()
    return loss


# ----------------------------------------------------------------------------------------- editors, told by labels


def intensities(target: Tensor, c: BaselineConfig) -> Tensor:
    """Asked for: how strong each AU should be, in [0, 1]; 0 where the label is missing. (B, n) -> (B, n)."""
    return target.nan_to_num() / MAX_INTENSITY


def classes(target: Tensor, c: BaselineConfig) -> Tensor:
    """Asked for: the class of each AU, one-hot; all 0 where the label is missing. (B, n) -> (B, n L)."""
    cls = au_classes(target, (c.levels,))
    return (F.one_hot(cls.clamp_min(0), c.levels) * (cls >= 0)[..., None]).flatten(1).float()


def tell_intensities(score: Tensor, au: Tensor, c: BaselineConfig) -> Tensor:
    """L = mean (score - au / 5)^2 over the labels there are. score, au (B, n)."""
    return weighted_mean((score - au.nan_to_num() / MAX_INTENSITY).square(), ~au.isnan())


def tell_classes(score: Tensor, au: Tensor, c: BaselineConfig) -> Tensor:
    """L = sum_k cross-entropy of the class of AU k, mean over images. score (B, n L), au (B, n)."""
    score = score.unflatten(1, (-1, c.levels)).transpose(1, 2)  # (B, n L) -> (B, L, n)
    return F.cross_entropy(score, au_classes(au, (c.levels,)), ignore_index=-1, reduction="sum") / len(au)


class Rule(NamedTuple):
    """What distinguishes one editor from the other."""

    ask: Callable[[Tensor, BaselineConfig], Tensor]  # AUs of the target -> what the generator is told
    tell: Callable[[Tensor, Tensor, BaselineConfig], Tensor]  # the critic's loss on labels
    weight: float  # of that loss
    masked: bool = False


GUIDE = 160.0  # weight of what the guide says, that of GANimation's label loss

RULES = {
    # Pumarola et al. tell the AUs that an estimator read from the training images; ours are true. Their weight 4000 of
    # the label loss is divided by a batch of 25 in their code; the target is not blended with the source.
    "GANimation": Rule(intensities, tell_intensities, 160.0, masked=True),
    # Choi et al. have one domain of several (an emotion) or a few binary attributes: here each AU has classes.
    "StarGAN": Rule(classes, tell_classes, 1.0),
}


class Editor(nn.Module):
    """An image and labels in, the edited image out: `GANimation` or `StarGAN`.

    Critic: WGAN-GP, and it reads the labels of real images. Generator: realism, the critic must read the labels of b
    from the edit, editing back must give the image (L1, 10), and a mask should be wide and smooth.
    """

    def __init__(self, name: str, c: BaselineConfig, read: Estimator | None = None) -> None:
        super().__init__()
        self.name, self.c, self.rule, self.read, self.autocast = name, c, RULES[name], read, nullcontext
        self.guide: Swapper | None = None  # whose AU branch reads edits too, while training; None: as published
        labels = c.n_aus * c.levels if self.rule.ask is classes else c.n_aus
        self.G = Painter(c, labels, self.rule.masked)
        self.D = Critic(c, labels)
        self.opt_G, self.opt_D = adam(self.G, c.lr), adam(self.D, c.lr)

    def edit(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """image (B, 3, S, S), the AUs it should show (B, n) -> edited image, mask or None."""
        return self.G(image, self.rule.ask(target, self.c))

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 3, S, S) -> f_f, the image itself; f_r (B, n, 1), the AUs read from it."""
        assert self.read is not None, "an editor needs an estimator of AUs at run time"
        return image, self.read(image).unsqueeze(-1)  # (B, n) -> (B, n, 1)

    def generate(self, f_f: Tensor, f_r: Tensor) -> Tensor:
        """f_f (B, 3, S, S) an image, f_r (B, n, 1) the AUs it should show -> image (B, 3, S, S) in [-1, 1]."""
        return self.edit(f_f, f_r[..., 0])[0].clamp(-1, 1)

    def critic_step(self, batch: Batch) -> dict[str, Tensor]:
        """The critic learns; the generator stays as it is, bit for bit."""
        with self.autocast():
            with torch.no_grad():
                fake = self.edit(batch.x, partner(batch.au))[0]
            real_score, labels = self.D(batch.x)
            loss = {
                "D_realism": self.D(fake)[0].mean() - real_score.mean(),
                "D_labels": self.rule.weight * self.rule.tell(labels, batch.au, self.c),
            }
            loss["D_penalty"] = 10 * gradient_penalty(lambda x: self.D(x)[0], batch.x, fake)
        return optimizer_step(self.opt_D, loss)

    def generator_step(self, batch: Batch) -> dict[str, Tensor]:
        """The generator learns; the critic stays as it is, bit for bit."""
        x, au, au_b = batch.x, batch.au, partner(batch.au)
        with frozen(self.D), self.autocast():
            fake, mask = self.edit(x, au_b)
            score, labels = self.D(fake)
            back, mask_back = self.edit(fake, au)
            loss = {
                "realism": -score.mean(),
                "labels": self.rule.weight * self.rule.tell(labels, au_b, self.c),
                "cycle": 10 * F.l1_loss(back, x),
            }
            if self.guide is not None:
                with frozen(self.guide):
                    read = self.guide.read_au(augment(fake))[1].sigmoid()  # (B, n) of 5
                loss["guide"] = GUIDE * tell_intensities(read, au_b, self.c)
        if mask is not None and mask_back is not None:  # the published weights, on means instead of sums
            loss["mask"] = 0.1 * sum((1 - m).mean() for m in (mask, mask_back))
            loss["smooth"] = sum(m.diff(dim=k).square().mean() for m in (mask, mask_back) for k in (2, 3))
        return optimizer_step(self.opt_G, loss)


# ------------------------------------------------------------------------------------------------------- training


def train_step(method: Editor, batch: Batch, step: int) -> dict[str, Tensor]:
    """The critic learns from every batch, the generator from every `critic_steps`-th -> losses, weighted."""
    loss = method.critic_step(batch)
    if (step + 1) % method.c.critic_steps == 0:
        loss |= method.generator_step(batch)
    return loss


def n_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@cache
def like_ours(name: str, c: BaselineConfig) -> BaselineConfig:
    """`c` with the width, a multiple of 4, at which what runs after training has as many parameters as ours."""
    with torch.device("meta"):
        ours = n_parameters(Swapper(ModelConfig(size=c.size, n_aus=c.n_aus)))
        found = [replace(c, width=width) for width in range(4, 128, 4)]
        return min(found, key=lambda c: abs(n_parameters(Editor(name, c).G) - ours))


def train_editor(
    name: str, c: BaselineConfig, data: FaceData, config: TrainConfig, folder: Path, guide: Path | None = None
) -> Path:
    """Train an editor with its own losses on pairs of two people, or continue its run -> its checkpoint.

    `guide` is a checkpoint whose AU branch guides the editor. Of `config`, the fields steps, batch_size, ema, seed,
    device, precision and save_every are used. Batches, averaging and state are those of `expr_lib.train`; only its log,
    samples and metadata are missing here, since they need a swapper. The rate falls to 0 over the second half, as in
    StarGAN. A run that was killed and continued ends with the same bits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = replace(config.model, size=data.size, n_aus=len(data.au_names))
    config = replace(config, model=model, supervision="unpaired", warmup_steps=0)
    path, here = folder / CHECKPOINT, accelerator(config)
    torch.manual_seed(config.seed)
    method = Editor(name, c).to(here.device, memory_format=torch.channels_last)
    method.autocast = here.autocast
    if guide is not None:
        method.guide = checkpoint.load_swapper(guide, str(here.device))
    ema = copy.deepcopy(method.G).eval().requires_grad_(False)
    nets = SimpleNamespace(G=method.G, D=method.D, ema=ema, opt_G=method.opt_G, opt_D=method.opt_D)
    about: dict[str, Any] = {"method": name, "baseline": asdict(c), "step": 0}
    if (last := checkpoint.load_last(path)) is not None:
        about["step"] = last[1]["step"]
        restore(nets, last[0], path)

    first, saved = about["step"], {config.steps, *range(0, config.steps, config.save_every)}
    steps = batches_from(first, config, data.subset("train"), here.device)
    with stop_signals(signal.SIGINT, signal.SIGTERM) as stop:
        for step, batch in tqdm(steps, initial=first, total=config.steps, unit="step"):
            for group in method.opt_G.param_groups + method.opt_D.param_groups:
                group["lr"] = c.lr * min(1.0, 2 * (1 - step / config.steps))
            loss = train_step(method, batch, step)
            average(ema, method.G, config.ema, step)
            if step + 1 in saved or stop:
                if not torch.stack(list(loss.values())).isfinite().all():
                    raise FloatingPointError(f"{folder}: step {step}: a loss is not finite: {loss}")
                checkpoint.save(path, all_tensors(nets), about | {"step": step + 1}, keep_previous=True)
            if stop:
                raise KeyboardInterrupt
    return path


def open_editor(path: Path, read: Estimator | None, device: str = "cpu") -> Editor:
    """An editor in eval mode with the averaged weights of a checkpoint; `read` is its estimator of AUs."""
    tensors, about = checkpoint.load(path, device)
    method = Editor(about["method"], BaselineConfig(**about["baseline"]), read).to(device)
    checkpoint.load_module("ema", method.G, tensors, path)
    return method.eval()
