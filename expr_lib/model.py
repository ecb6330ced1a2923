"""The networks, in the paper's names: `E` encodes, `DG` disentangles and generates, three discriminators watch.

    image --E--> features --DG.disentangle--> f_f (AU-free map), f_r (one short vector per action unit)
                                    f_f^a, f_r^b --DG.generate (the paper's G)--> face a with the expression of b

Source: Shao et al., *Explicit Facial Expression Transfer via Fine-Grained Representations*, IEEE TIP 2021 (arXiv
1909.02967). The paper's layer tables are not public, so every width and layer here is our choice: small enough for two
CPU cores. Shapes: B images, S pixels, n action units, d numbers for each of them, C channels of f_f.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from expr_lib import processes
from expr_lib.errors import InputError, check_range
from expr_lib.facs import AU_NAMES, MAX_INTENSITY, PRESENT_AT


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the networks. `size` and `n_aus` are taken from the data set when training."""

    size: int = 64  # S, pixels; a multiple of 16
    n_aus: int = 17  # n
    d: int = 8  # numbers per action unit in f_r
    c_f: int = 16  # C, channels of f_f
    noise: float = 1.0  # standard deviation of the noise on f_f while training: as strong as f_f itself
    width: int = 64  # channels of E and G at S/4
    width_r: int = 128  # channels of the AU-related branch
    width_d: int = 32  # channels of the first layer of the image discriminator
    levels: tuple[int, ...] = (4,)  # AU classes for the adversary, 2 to 6: one number for all AUs or one for each
    conditional: bool = True  # the image discriminator also asks whether the image shows the AUs it should

    def __post_init__(self) -> None:
        check_range(
            self, size=(16, 512), n_aus=(1, 100), d=(1, 256), c_f=(1, 512), noise=(0, 100), width=(8, 1024),
            width_r=(1, 2048), width_d=(1, 1024),
        )  # fmt: skip
        if self.size % 16:
            raise InputError(f"size {self.size}: expected a positive multiple of 16")
        if any(c % max(1, c // 16) for c in (self.width, self.width // 2)):  # groups of `norm`
            raise InputError(f"width {self.width}: expected a multiple of 32, or 8 to 31")
        if len(self.levels) not in (1, self.n_aus) or not all(2 <= level <= 6 for level in self.levels):
            raise InputError(f"levels {self.levels}: expected one number from 2 to 6, or {self.n_aus} of them")

    @property
    def au_levels(self) -> tuple[int, ...]:
        """Number of classes of each AU, `n_aus` long."""
        return self.levels * self.n_aus if len(self.levels) == 1 else self.levels


def au_classes(au: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Intensities (B, n) in [0, 5] -> classes (B, n) int64, 0 = absent; -1 where the label is missing (NaN).

    An AU below intensity A (`PRESENT_AT`) is class 0; [1, 5] is cut into `levels - 1` equal parts. With 2 levels that
    is absent/present, with 6 the whole numbers 1..5 fall into the FACS letters A..E. Our choice.
    """
    level = torch.tensor(levels, device=au.device)  # (n,) or (1,)
    span = MAX_INTENSITY - PRESENT_AT
    cls = 1 + torch.floor((au.nan_to_num() - PRESENT_AT) / span * (level - 1)).long()
    cls = torch.where(au >= PRESENT_AT, cls.minimum(level - 1), torch.zeros_like(cls))
    return cls.masked_fill(au.isnan(), -1)


def mix(f_r_a: Tensor, f_r_b: Tensor, weights: Tensor) -> Tensor:
    """Move each AU from a (weight 0) to b (weight 1): two f_r (B, n, d), weights (B, n) or (n,) -> f_r (B, n, d)."""
    return torch.lerp(f_r_a, f_r_b, weights.unsqueeze(-1).expand_as(f_r_a).to(f_r_a))


def norm(channels: int) -> nn.GroupNorm:
    # GroupNorm, not InstanceNorm: instance statistics wash out contrast and background
    return nn.GroupNorm(max(1, channels // 16), channels)


class Block(nn.Module):
    """Residual block at constant size; with `style` its norms are scaled and shifted by it (adaptive norm, FiLM)."""

    def __init__(self, channels: int, style: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(channels), norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(style, 4 * channels) if style else None

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        if self.film is None or style is None:
            h = self.conv1(F.silu(self.norm1(x)))
            return x + self.conv2(F.silu(self.norm2(h)))
        scale1, shift1, scale2, shift2 = self.film(style)[:, :, None, None].chunk(4, 1)  # each (B, channels, 1, 1)
        h = self.conv1(F.silu(self.norm1(x) * (1 + scale1) + shift1))
        return x + self.conv2(F.silu(self.norm2(h) * (1 + scale2) + shift2))


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over the batch of all processes; torch's own SyncBatchNorm does the same, but on GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or processes.count() == 1:
            return super().forward(x)
        n = processes.count() * x.numel() / x.shape[1]
        mean = processes.mean(x.float().mean((0, 2, 3), keepdim=True))  # (1, C, 1, 1)
        var = processes.mean((x - mean).square().mean((0, 2, 3), keepdim=True))  # (1, C, 1, 1)
        with torch.no_grad():
            self.get_buffer("running_mean").lerp_(mean.flatten(), 0.1)
            self.get_buffer("running_var").lerp_(var.flatten() * n / (n - 1), 0.1)
        scale = self.weight[:, None, None] * (var + self.eps).rsqrt()  # (1, C, 1, 1)
        return ((x - mean) * scale + self.bias[:, None, None]).to(x.dtype)


def conv_bn(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    # batch norm where expressions are read: with group norm the AU branch stays blind for ten times as long
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), BatchNorm(c_out), nn.ReLU())


class Residual(nn.Module):
    """Residual block at constant size, with batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(channels, channels), nn.Conv2d(channels, channels, 3, padding=1, bias=False), BatchNorm(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class E(nn.Module):
    """Encoder, shared by both branches: image (B, 3, S, S) in [-1, 1] -> features (B, w + 4, S/4, S/4).

    The image is standardized first, since light and skin tone are most of what differs between images and nothing of
    what an AU is; what that removes, mean colour and contrast, comes back as the last 4 channels, for f_f to keep.
    """

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        w = c.width
        self.net = nn.Sequential(
            nn.PixelUnshuffle(2), conv_bn(12, w // 2), Residual(w // 2),  # (B, w/2, S/2, S/2)
            conv_bn(w // 2, w, stride=2), Residual(w),  # (B, w, S/4, S/4)
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        mean = image.mean((2, 3), keepdim=True)  # (B, 3, 1, 1)
        contrast = (image.var((1, 2, 3), keepdim=True) + 1e-6).sqrt()  # (B, 1, 1, 1); smooth for an image of one colour
        h = self.net((image - mean) / contrast)
        removed = torch.cat([mean, contrast], 1).expand(-1, -1, *h.shape[2:])  # (B, 4, S/4, S/4)
        return torch.cat([h, removed.to(h.dtype)], 1)


class AUFree(nn.Module):
    """features (B, w + 4, S/4, S/4) -> f_f (B, C, S/4, S/4): a map, because identity, pose and background have places.

    f_f has unit power, spent where the image needs it, and noise while training: a channel that carries at most
    1/2 log2(1 + 1 / noise^2) bits a number (Shannon, 1948). Expression, which f_r brings anyway, must not fit in.
    """

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        w, self.noise = c.width, c.noise
        self.net = nn.Sequential(nn.Conv2d(w + 4, w, 1), Block(w), Block(w), norm(w), nn.SiLU(), nn.Conv2d(w, c.c_f, 1))

    def forward(self, features: Tensor) -> Tensor:
        f_f = self.net(features).float()  # (B, C, S/4, S/4)
        f_f = f_f * (f_f.square().mean((1, 2, 3), keepdim=True) + 1e-6).rsqrt()
        if self.training:
            f_f = f_f + self.noise * processes.draw(torch.randn, *f_f.shape, device=f_f.device)
        return f_f


class AURelated(nn.Module):
    """features (B, w + 4, S/4, S/4) -> f_r (B, n, d) in [-1, 1]: one vector for each AU; each can be swapped alone."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.w, r, self.shape = c.width, c.width_r, (c.n_aus, c.d)
        self.tower = nn.Sequential(
            conv_bn(c.width, r, stride=2), Residual(r),  # (B, r, S/8, S/8)
            conv_bn(r, r, stride=2), nn.Flatten(),  # (B, r * (S/16)^2): a face has its parts in places
        )  # fmt: skip
        self.to_f_r = nn.Linear(r * (c.size // 16) ** 2, c.n_aus * c.d)
        # the readout has one row for each AU, so that f_r[:, k] alone answers for AU k; most AUs are absent: bias -2
        self.readout = nn.Parameter(torch.randn(c.n_aus, c.d) * 0.5)
        self.bias = nn.Parameter(torch.full((c.n_aus,), -2.0))

    def forward(self, features: Tensor) -> Tensor:
        h = self.tower(features[:, : self.w])  # not the 4 channels of colour and contrast
        if self.training:  # dropout
            h = h * (processes.draw(torch.rand, *h.shape, device=h.device) >= 0.2) / 0.8
        return self.to_f_r(h).float().tanh().unflatten(1, self.shape)  # (B, n*d) -> (B, n, d)

    def au(self, f_r: Tensor) -> Tensor:
        """f_r (B, n, d) -> AU logits (B, n): intensity = 5 sigmoid(logit)."""
        return (f_r.float() * self.readout).sum(-1) + self.bias


class G(nn.Module):
    """Generator: f_f (B, C, S/4, S/4) of one face, f_r (B, n, d) of another -> image (B, 3, S, S) in [-1, 1].

    f_f is the canvas. f_r acts on it everywhere, as style of the blocks, and where each AU lives, through a gate.
    """

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        w, style = c.width, 2 * c.width
        self.style = nn.Sequential(nn.Linear(c.n_aus * c.d, style), nn.SiLU(), nn.Linear(style, style), nn.SiLU())
        self.canvas, self.block1 = nn.Conv2d(c.c_f, w, 3, padding=1), Block(w, style)
        self.gate, self.paint = nn.Conv2d(w, c.n_aus, 3, padding=1), nn.Parameter(torch.randn(c.n_aus, c.d, w) * 0.1)
        self.block2, self.block3 = Block(w, style), Block(w, style)
        self.up4, self.block4 = nn.Conv2d(w, w // 2, 3, padding=1), Block(w // 2, style)
        self.norm5, self.to_image = norm(w // 2), nn.Conv2d(w // 2, 12, 3, padding=1)
        self.thumbnail = nn.Conv2d(c.c_f, 3, 1)  # colours straight from f_f: the rest need only draw what is finer

    def forward(self, f_f: Tensor, f_r: Tensor) -> Tensor:
        style = self.style(f_r.flatten(1))  # (B, n * d) -> (B, style)
        h = self.block1(self.canvas(f_f), style)  # (B, w, S/4, S/4)
        h = self.block3(self.block2(h + self.painted(h, f_r), style), style)
        # nearest neighbour, then convolution: a transposed convolution would leave a checkerboard
        h = self.block4(self.up4(F.interpolate(h, scale_factor=2.0)), style)  # (B, w/2, S/2, S/2)
        fine = F.pixel_shuffle(self.to_image(F.silu(self.norm5(h))), 2)  # (B, 12, S/2, S/2) -> (B, 3, S, S), as E began
        thumbnail = F.interpolate(self.thumbnail(f_f), scale_factor=4.0, mode="bilinear")  # (B, 3, S, S)
        return (fine + thumbnail).float().tanh()

    def painted(self, h: Tensor, f_r: Tensor) -> Tensor:
        """What f_r (B, n, d) adds to h (B, w, S/4, S/4), each AU in its place."""
        paint = torch.einsum("bnd,ndw->bnw", f_r, self.paint)  # what each AU would add ...
        return torch.einsum("bnyx,bnw->bwyx", self.gate(h).sigmoid(), paint.to(h.dtype))  # ... and where


class DG(nn.Module):
    """Disentangle and generate: features -> (f_f, f_r), and any f_f with any f_r -> image."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.free, self.related, self.G = AUFree(c), AURelated(c), G(c)

    def disentangle(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features (B, w, S/4, S/4) -> AU-free f_f (B, C, S/4, S/4), AU-related f_r (B, n, d)."""
        return self.free(features), self.related(features)

    def generate(self, f_f: Tensor, f_r: Tensor) -> Tensor:
        """f_f (B, C, S/4, S/4), f_r (B, n, d) -> image (B, 3, S, S) in [-1, 1]."""
        return self.G(f_f, f_r)

    def au(self, f_r: Tensor) -> Tensor:
        """f_r (B, n, d) -> AU logits (B, n)."""
        return self.related.au(f_r)


class Swapper(nn.Module):
    """The generator side, all that is needed at run time: E and DG."""

    au_names: tuple[str, ...] = AU_NAMES  # training and loading set the data set's own
    warm: bool = False  # training sets it after the warm-up

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = {}  # of the checkpoint that it was loaded from
        self.E, self.DG = E(config), DG(config)

    def train(self, mode: bool = True) -> Swapper:
        """After the warm-up batch norm keeps its statistics: synthesized images must not move them."""
        super().train(mode)
        for module in self.modules() if self.warm else ():
            if isinstance(module, BatchNorm):
                module.eval()
        return self

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 3, S, S) in [-1, 1] -> f_f (B, C, S/4, S/4), f_r (B, n, d)."""
        return self.DG.disentangle(self.E(image))

    def read_au(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The AU branch alone: image (B, 3, S, S) -> f_r (B, n, d), AU logits (B, n)."""
        f_r = self.DG.related(self.E(image))
        return f_r, self.DG.au(f_r)

    def generate(self, f_f: Tensor, f_r: Tensor) -> Tensor:
        """f_f (B, C, S/4, S/4), f_r (B, n, d) -> image (B, 3, S, S) in [-1, 1]."""
        return self.DG.generate(f_f, f_r)

    def swap(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Two batches (B, 3, S, S) -> a with the expressions of b, b with the expressions of a."""
        f_f, f_r = self.encode(torch.cat([a, b]))
        return self.generate(f_f, f_r.roll(len(a), 0)).chunk(2)  # type: ignore[return-value]

    def reconstruct(self, image: Tensor) -> Tensor:
        """Self-reconstruction G(f_f, f_r): should be the image (B, 3, S, S) itself."""
        return self.generate(*self.encode(image))

    def intensities(self, f_r: Tensor) -> Tensor:
        """f_r (B, n, d) -> AU intensities (B, n) in [0, 5]."""
        return MAX_INTENSITY * self.DG.au(f_r).sigmoid()

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.swap(a, b)


class D_f(nn.Module):
    """Multi-class discriminator: f_f (B, C, S/4, S/4) -> a score for each class of each AU (B, n, L)."""

    def __init__(self, c: ModelConfig, hidden: int = 256) -> None:
        super().__init__()
        self.shape = (c.n_aus, max(c.au_levels))
        self.net = nn.Sequential(
            conv_bn(c.c_f, 64), conv_bn(64, 64, stride=2), Residual(64),  # (B, 64, S/8, S/8)
            conv_bn(64, 128, stride=2), nn.Flatten(),  # (B, 128 * (S/16)^2)
            nn.Linear(128 * (c.size // 16) ** 2, hidden), nn.ReLU(), nn.Linear(hidden, c.n_aus * max(c.au_levels)),
        )  # fmt: skip

    def forward(self, f_f: Tensor) -> Tensor:
        return self.net(f_f).float().unflatten(1, self.shape)


class D_r(nn.Module):
    """Subject discriminator: f_r (B, n, d) -> a score for each training subject (B, 1, n_subjects)."""

    def __init__(self, c: ModelConfig, n_subjects: int, hidden: int = 256) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(c.n_aus * c.d, hidden), nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, n_subjects),
        )  # fmt: skip

    def forward(self, f_r: Tensor) -> Tensor:
        return self.net(f_r).float().unsqueeze(1)


class D(nn.Module):
    """Image discriminator: one trunk (spectral norm keeps it calm), two heads.

    image (B, 3, S, S), the AUs it should show (B, n) in [0, 5] ->
    `realism` (B, 1, S/8, S/8): real or synthesized?  `swap` (B, 1, S/8, S/8): self-reconstructed or swapped?
    With `conditional` both add <features, embed(au)> at every place (projection discriminator, Miyato & Koyama, ICLR
    2018), so that a face that ignores the other's expression is not "real". Where the label of an AU is missing (NaN)
    stands one learned intensity, what D expects of an AU it knows nothing about: with 0 it would ask for its absence.
    """

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        w = c.width_d
        self.trunk = nn.Sequential(
            spectral_norm(nn.Conv2d(3, w, 4, 2, 1)), nn.LeakyReLU(0.2),  # (B, w, S/2, S/2)
            spectral_norm(nn.Conv2d(w, 2 * w, 4, 2, 1)), nn.LeakyReLU(0.2),  # (B, 2w, S/4, S/4)
            spectral_norm(nn.Conv2d(2 * w, 4 * w, 4, 2, 1)), nn.LeakyReLU(0.2),  # (B, 4w, S/8, S/8)
            spectral_norm(nn.Conv2d(4 * w, 4 * w, 3, 1, 1)), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.score = nn.Conv2d(4 * w, 2, 1)
        self.embed = nn.Linear(c.n_aus, 2 * 4 * w, bias=False) if c.conditional else None
        # (n,) of 5; begins where absent ends and present begins
        self.unknown = nn.Parameter(torch.full((c.n_aus,), PRESENT_AT / MAX_INTENSITY)) if c.conditional else None

    def forward(self, image: Tensor, au: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(image)  # (B, 4w, S/8, S/8)
        score = self.score(h).float()  # (B, 2, S/8, S/8)
        if self.embed is not None and self.unknown is not None:
            asked = torch.where(au.isnan(), self.unknown, au / MAX_INTENSITY)  # (B, n)
            embed = self.embed(asked).unflatten(1, (2, -1))  # (B, 2, 4w)
            score = score + torch.einsum("bkc,bcyx->bkyx", embed, h.to(embed.dtype)).float()
        return score.chunk(2, 1)
