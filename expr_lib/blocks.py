"""Building blocks of all networks: sizes, convolutions with batch norm, and residual blocks with or without a style."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expr_lib import processes
from expr_lib.errors import InputError, check_range


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the networks. `size` and `n_aus` are taken from the data set when training."""

    size: int = 64  # S, side of the input of E in pixels; a multiple of 16 (drawn) or of 32 (moved)
    n_aus: int = 17  # n
    d: int = 8  # numbers per action unit in f_r
    c_f: int = 16  # C, channels of f_f (drawn) or of its map m (moved)
    noise: float = 1.0  # standard deviation of the noise on f_f while training: as strong as f_f itself
    width: int = 64  # channels of E and G at S/4
    width_r: int = 128  # channels of the AU-related branch
    width_d: int = 32  # channels of the first layer of the image discriminator
    levels: tuple[int, ...] = (4,)  # AU classes for the adversary, 2 to 6; one number for all AUs or one for each
    conditional: bool = True  # the image discriminator also sees the AUs that the image should show
    generator: Literal["drawn", "moved"] = "drawn"  # G draws the face anew or moves the pixels of the face at rest

    def __post_init__(self) -> None:
        check_range(
            self, size=(16, 512), n_aus=(1, 100), d=(1, 256), c_f=(1, 512), noise=(0, 100), width=(8, 1024),
            width_r=(1, 2048), width_d=(1, 1024),
        )  # fmt: skip
        unit, halvings = (16, 2) if self.generator == "drawn" else (32, 3)
        if self.size % unit:
            raise InputError(f"size: found {self.size}, expected a positive multiple of {unit} ({self.generator})")
        if any(c % max(1, c // 16) for c in (self.width >> k for k in range(halvings))):  # groups of `norm`
            raise InputError(f"width: found {self.width}, expected a multiple of {8 << halvings}, or 8 to 31")
        if len(self.levels) not in (1, self.n_aus) or not all(2 <= level <= 6 for level in self.levels):
            raise InputError(f"levels {self.levels}: expected one number from 2 to 6, or {self.n_aus} of them")

    @property
    def patch(self) -> int:
        """Side of the patches of pixels that E takes as input: 2, or, with the moving generator, 1/32 of the image."""
        return 2 if self.generator == "drawn" else self.size // 32

    @property
    def grid(self) -> int:
        """Height and width of E's features and of f_f."""
        return self.size // (2 * self.patch)

    @property
    def au_levels(self) -> tuple[int, ...]:
        """Number of classes of each AU, `n_aus` long."""
        return self.levels * self.n_aus if len(self.levels) == 1 else self.levels


def norm(channels: int) -> nn.GroupNorm:
    # not instance norm, which removes contrast and background
    return nn.GroupNorm(max(1, channels // 16), channels)


class Block(nn.Module):
    """Residual block at constant size; a `style` scales and shifts its norms (adaptive norm, FiLM)."""

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
    """Batch norm over the batch of all processes, on any device; torch's SyncBatchNorm works on GPUs only."""

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
    # expressions are read with batch norm; with group norm the AU branch needs ten times as long to learn anything
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
