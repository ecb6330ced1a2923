"""The networks, with the paper's names: the encoder `E`, `DG`, which disentangles and generates, and discriminators.

    image --E--> features --DG.disentangle--> f_f (AU-free), f_r (one short vector per action unit)
                                    f_f^a, f_r^b --DG.generate (the paper's G)--> face a with the expression of b

There are two generators. The first draws a face anew from f_f, a small map (`DG`, `G`). The second moves the pixels
of the face at rest, which is part of its f_f (`MovingDG`, with the networks of `moving.py`).

Source: Shao et al., *Explicit Facial Expression Transfer via Fine-Grained Representations*, IEEE TIP 2021 (arXiv
1909.02967). The paper's layer tables are not public, so every width and layer here is our choice, small enough for two
CPU cores. Shapes: B images of S x S pixels, n action units, d numbers for each of them, C channels of f_f.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from expr_lib import processes
from expr_lib.blocks import BatchNorm, Block, ModelConfig, Residual, conv_bn, norm
from expr_lib.errors import InputError
from expr_lib.facs import AU_NAMES, MAX_INTENSITY, PRESENT_AT
from expr_lib.moving import AtRest, Free, Mover, as_map, beyond, carried, edited, in_one, resize


def au_classes(au: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Intensities (B, n) in [0, 5] -> classes (B, n) int64, 0 = absent, -1 = missing label (NaN).

    An AU below intensity A (`PRESENT_AT`) is class 0; [1, 5] is divided into `levels - 1` equal parts. Two levels
    mean absent and present; with six, the integers 1 to 5 correspond to the FACS letters A to E. Our choice.
    """
    level = torch.tensor(levels, device=au.device)  # (n,) or (1,)
    span = MAX_INTENSITY - PRESENT_AT
    cls = 1 + torch.floor((au.nan_to_num() - PRESENT_AT) / span * (level - 1)).long()
    cls = torch.where(au >= PRESENT_AT, cls.minimum(level - 1), torch.zeros_like(cls))
    return cls.masked_fill(au.isnan(), -1)


def mean_f_r(f_r: Tensor, au: Tensor) -> Tensor:
    """Mean f_r of each AU at each intensity: f_r (N, n, d), au (N, n) in [0, 5], NaN = missing -> (n, 6, d).

    Each image counts for the integer nearest to its intensity. An intensity that no image shows is interpolated
    linearly between its neighbours, or extrapolated along the line from the lowest to the highest that is shown; an AU
    that is shown at one intensity only has the same vector at all of them. Our choice.
    """
    levels = int(MAX_INTENSITY) + 1
    table = f_r.new_zeros(f_r.shape[1], levels, f_r.shape[2])
    for k in range(f_r.shape[1]):
        level = au[:, k].round()
        shown = [v for v in range(levels) if (level == v).any()]
        if not shown:
            continue
        means = torch.stack([f_r[level == v, k].mean(0) for v in shown])  # (shown, d)
        for v in range(levels):
            after = next((i for i, other in enumerate(shown) if other >= v), len(shown) - 1)
            i, j = (max(after - 1, 0), after) if v <= shown[-1] and v >= shown[0] else (0, len(shown) - 1)
            span = shown[j] - shown[i]
            table[k, v] = torch.lerp(means[i], means[j], (v - shown[i]) / span) if span else means[j]
    return table


def mix(f_r_a: Tensor, f_r_b: Tensor, weights: Tensor) -> Tensor:
    """Interpolate each AU from a (weight 0) to b (weight 1): f_r (B, n, d), weights (B, n) or (n,) -> f_r (B, n, d)."""
    return torch.lerp(f_r_a, f_r_b, weights.unsqueeze(-1).expand_as(f_r_a).to(f_r_a))


class E(nn.Module):
    """Encoder, shared by both branches: image (B, 3, S, S) in [-1, 1] -> features (B, w + 4, grid, grid).

    The image is standardized first, because most differences between images are light and skin tone, which do not
    depend on the AUs. The mean colour and contrast that this removes are appended as the last 4 channels, for f_f.
    """

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        w, p = c.width, c.patch
        self.net = nn.Sequential(
            nn.PixelUnshuffle(p), conv_bn(3 * p * p, w // 2), Residual(w // 2),  # (B, w/2, S/p, S/p)
            conv_bn(w // 2, w, stride=2), Residual(w),  # (B, w, grid, grid), grid = S / 2p
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        mean = image.mean((2, 3), keepdim=True)  # (B, 3, 1, 1)
        contrast = (image.var((1, 2, 3), keepdim=True) + 1e-6).sqrt()  # (B, 1, 1, 1); smooth for an image of one colour
        h = self.net((image - mean) / contrast)
        removed = torch.cat([mean, contrast], 1).expand(-1, -1, *h.shape[2:])  # (B, 4, grid, grid)
        return torch.cat([h, removed.to(h.dtype)], 1)


class AUFree(nn.Module):
    """features (B, w + 4, grid, grid) -> f_f (B, C, grid, grid), a map, since identity and background have places.

    f_f has unit power, distributed as the image needs, and noise is added in training, so that it carries at most
    1/2 log2(1 + 1 / noise^2) bits per number (Shannon, 1948). This leaves no room for the expression, which f_r has.
    """

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        w, self.noise = c.width, c.noise
        self.net = nn.Sequential(nn.Conv2d(w + 4, w, 1), Block(w), Block(w), norm(w), nn.SiLU(), nn.Conv2d(w, c.c_f, 1))

    def forward(self, features: Tensor) -> Tensor:
        f_f = self.net(features).float()  # (B, C, grid, grid)
        f_f = f_f * (f_f.square().mean((1, 2, 3), keepdim=True) + 1e-6).rsqrt()
        if self.training:
            f_f = f_f + self.noise * processes.draw(torch.randn, *f_f.shape, device=f_f.device)
        return f_f


class AURelated(nn.Module):
    """features (B, w + 4, grid, grid) -> f_r (B, n, d) in [-1, 1], one vector per AU, which can be swapped alone."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.w, r, self.shape = c.width, c.width_r, (c.n_aus, c.d)
        self.tower = nn.Sequential(
            conv_bn(c.width, r, stride=2), Residual(r),  # (B, r, grid/2, grid/2)
            conv_bn(r, r, stride=2), nn.Flatten(),  # (B, r * (grid/4)^2): places are kept apart
        )  # fmt: skip
        self.to_f_r = nn.Linear(r * (c.grid // 4) ** 2, c.n_aus * c.d)
        # one row per AU: the logit of AU k depends on f_r[:, k] only; the bias is -2 because most AUs are absent
        self.readout = nn.Parameter(torch.randn(c.n_aus, c.d) * 0.5)
        self.bias = nn.Parameter(torch.full((c.n_aus,), -2.0))

    def forward(self, features: Tensor) -> Tensor:
        h = self.tower(features[:, : self.w])  # without the 4 channels of colour and contrast
        if self.training:  # dropout
            h = h * (processes.draw(torch.rand, *h.shape, device=h.device) >= 0.2) / 0.8
        return self.to_f_r(h).float().tanh().unflatten(1, self.shape)  # (B, n*d) -> (B, n, d)

    def au(self, f_r: Tensor) -> Tensor:
        """f_r (B, n, d) -> AU logits (B, n); the intensity is 5 sigmoid(logit)."""
        return (f_r.float() * self.readout).sum(-1) + self.bias


class G(nn.Module):
    """Generator: f_f (B, C, S/4, S/4) of one face, f_r (B, n, d) of another -> image (B, 3, S, S) in [-1, 1].

    f_r acts on f_f everywhere, as the style of the blocks, and locally, through one gate for each AU.
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
        self.thumbnail = nn.Conv2d(c.c_f, 3, 1)  # colours directly from f_f, so the other layers add detail only

    def forward(self, f_f: Tensor, f_r: Tensor) -> Tensor:
        style = self.style(f_r.flatten(1))  # (B, n * d) -> (B, style)
        h = self.block1(self.canvas(f_f), style)  # (B, w, S/4, S/4)
        h = self.block3(self.block2(h + self.painted(h, f_r), style), style)
        # nearest neighbour, then convolution, since a transposed convolution leaves checkerboard artefacts
        h = self.block4(self.up4(F.interpolate(h, scale_factor=2.0)), style)  # (B, w/2, S/2, S/2)
        fine = F.pixel_shuffle(self.to_image(F.silu(self.norm5(h))), 2)  # (B, 12, S/2, S/2) -> (B, 3, S, S)
        thumbnail = F.interpolate(self.thumbnail(f_f), scale_factor=4.0, mode="bilinear")  # (B, 3, S, S)
        return (fine + thumbnail).float().tanh()

    def painted(self, h: Tensor, f_r: Tensor) -> Tensor:
        """What f_r (B, n, d) adds to h, for each AU where its gate is open -> (B, w, S/4, S/4)."""
        paint = torch.einsum("bnd,ndw->bnw", f_r, self.paint)  # what each AU adds
        return torch.einsum("bnyx,bnw->bwyx", self.gate(h).sigmoid(), paint.to(h.dtype))  # and where


class DG(nn.Module):
    """Features -> (f_f, f_r), and f_f of any face with f_r of any face -> image."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.free, self.related, self.G = AUFree(c), AURelated(c), G(c)

    def disentangle(self, features: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """features (B, w + 4, S/4, S/4) -> AU-free f_f (B, C, S/4, S/4), AU-related f_r (B, n, d)."""
        return self.free(features), self.related(features)

    def generate(self, f_f: Tensor, f_r: Tensor) -> Tensor:
        """f_f (B, C, S/4, S/4), f_r (B, n, d) -> image (B, 3, S, S) in [-1, 1]."""
        return self.G(f_f, f_r)


class MovingDG(nn.Module):
    """The second generation: f_f = (T, m), T an image of the face at rest, m a map of what T cannot show."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.free, self.related = AUFree(c), AURelated(c)
        self.take, self.put = Mover(c, c.width + 4), Mover(c, c.c_f)

    def disentangle(self, features: Tensor, image: Tensor) -> tuple[AtRest, Tensor]:
        """features (B, w + 4, 16, 16) of E, image (B, 3, R, R) of any size R -> f_f = (T, m), f_r (B, n, d).

        T is the result of `take`, with the detail that the reconstruction from it has lost. `take` depends on f_r, but
        its gradients do not reach f_r.
        """
        f_r, m = self.related(features), self.free(features)
        own = f_r.detach()
        flow, mask, colours = self.take.edits(resize(image, self.take.size), features, own)
        flow, mask, colours = (resize(x, image.shape[-1]) for x in (flow, mask, colours))  # once, for both uses below
        face = edited(image, (flow, mask, colours))
        with torch.no_grad():
            lost = image - self.put(face, m, own)
        return AtRest(face + carried(lost, (flow, mask, colours)), m), f_r

    def generate(self, f_f: AtRest, f_r: Tensor) -> Tensor:
        """f_f with T (B, 3, R, R), the face at rest, and f_r (B, n, d) -> image (B, 3, R, R) in [-1, 1]."""
        return self.put(f_f.face, f_f.map, f_r)

    def editor(self, f_f: AtRest, features: Tensor, image: Tensor) -> Callable[[Tensor], Tensor]:
        """A function of f_r: what must be done to the image (B, 3, R, R) of f_f so that it shows f_r (`moving.beyond`).

        It returns (B, 2 + 1 + 3, 256, 256), for a copy of the image of any size. If f_r is its own, nothing is done.
        """
        small, rest, own = resize(image, self.take.size), resize(f_f.face, self.put.size), self.related(features)
        taken = self.take.edits(small, features, own)

        def both(f_r: Tensor) -> Tensor:
            return in_one(taken, self.put.edits(rest, f_f.map, f_r), 256)

        back = both(own)
        return lambda f_r: beyond(back, both(f_r))


class Swapper(nn.Module):
    """E and DG of either generation, which is all that is needed at run time."""

    au_names: tuple[str, ...] = AU_NAMES  # set to those of the data set by training and loading
    warm: bool = False  # set by training after the warm-up
    reads_only: bool = False  # set by training without labels: E and the AU branch stay as they are
    table: Tensor | None = None  # (n, 6, d) mean f_r of each AU at intensity 0 to 5, made when training ends

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = {}  # of the checkpoint that it was loaded from
        self.E = E(config)
        self.DG: DG | MovingDG = DG(config) if config.generator == "drawn" else MovingDG(config)

    def train(self, mode: bool = True) -> Swapper:
        """As in torch, but after the warm-up batch norm keeps its statistics: synthesized images must not move them."""
        super().train(mode)
        for module in self.modules() if self.warm else ():
            if isinstance(module, BatchNorm):
                module.eval()
        if self.reads_only:
            self.E.eval(), self.DG.related.eval()
        return self

    def only_read(self) -> None:
        """Keep E and the AU branch as they are from now on, without dropout: no label is there to teach them."""
        self.reads_only = True
        self.E.requires_grad_(False), self.DG.related.requires_grad_(False)
        self.train(self.training)

    def encode(self, image: Tensor, seen: Tensor | None = None) -> tuple[Any, Tensor]:
        """image (B, 3, R, R) in [-1, 1] -> f_f, f_r (B, n, d). R is S for the drawn generator, any size for the moving.

        `seen` (B, 3, S, S) is the input of E, by default the image reduced to S pixels; training augments it.
        """
        features = self.E(resize(image, self.config.size) if seen is None else seen)
        return self.DG.disentangle(features, image)

    def read_au(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The AU branch alone: image (B, 3, S, S) -> f_r (B, n, d), AU logits (B, n)."""
        f_r = self.DG.related(self.E(image))
        return f_r, self.DG.related.au(f_r)

    def generate(self, f_f: Any, f_r: Tensor) -> Tensor:
        """f_f of one face, f_r (B, n, d) of another -> image (B, 3, R, R) in [-1, 1]."""
        return self.DG.generate(f_f, f_r)

    def swap(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Two batches (B, 3, R, R) -> a with the expressions of b, and b with the expressions of a."""
        f_f, f_r = self.encode(torch.cat([a, b]))
        return self.generate(f_f, f_r.roll(len(a), 0)).chunk(2)  # type: ignore[return-value]

    def reconstruct(self, image: Tensor) -> Tensor:
        """The self-reconstruction G(f_f, f_r), ideally equal to the image (B, 3, R, R)."""
        return self.generate(*self.encode(image))

    def rest(self, f_f: Any) -> Tensor | None:
        """The face at rest (B, 3, R, R) in [-1, 1]; None for the drawn generator, whose f_f is not a picture."""
        return f_f.face if isinstance(f_f, AtRest) else None

    def intensities(self, f_r: Tensor) -> Tensor:
        """f_r (B, n, d) -> AU intensities (B, n) in [0, 5]."""
        return MAX_INTENSITY * self.DG.related.au(f_r).sigmoid()

    def f_r_of(self, au: Tensor) -> Tensor:
        """Intensities (B, n) in [0, 5] -> f_r (B, n, d), between the two rows of `table` that are next to each.

        InputError if the checkpoint has no table.
        """
        if self.table is None:
            raise InputError("this checkpoint has no table of f_r by intensity; one is made when training ends")
        table = self.table.to(au.device)
        low = au.floor().clamp(0, MAX_INTENSITY - 1).long()  # (B, n)
        unit = torch.arange(au.shape[1], device=au.device)
        return torch.lerp(table[unit, low], table[unit, low + 1], (au - low).unsqueeze(-1))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.swap(a, b)


class D_f(nn.Module):
    """Multi-class discriminator: f_f -> a score for each class of each AU (B, n, L).

    Its input is f_f as one map: (B, C, S/4, S/4), or the face at rest and m together (`AtRest.as_map`).
    """

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.shape = (c.n_aus, max(c.au_levels))
        self.net = nn.Sequential(
            conv_bn(c.c_f if c.generator == "drawn" else AtRest.channels(c), 64),  # (B, 64, grid, grid)
            conv_bn(64, 64, stride=2), Residual(64),  # (B, 64, grid/2, grid/2)
            conv_bn(64, 128, stride=2), nn.Flatten(),  # (B, 128 * (grid/4)^2)
            nn.Linear(128 * (c.grid // 4) ** 2, 256), nn.ReLU(), nn.Linear(256, c.n_aus * max(c.au_levels)),
        )  # fmt: skip

    def forward(self, f_f: Free) -> Tensor:
        return self.net(as_map(f_f)).float().unflatten(1, self.shape)


class D_r(nn.Module):
    """Subject discriminator: f_r (B, n, d) -> a score for each training subject (B, 1, n_subjects)."""

    def __init__(self, c: ModelConfig, n_subjects: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(c.n_aus * c.d, 256), nn.LeakyReLU(0.2),
            nn.Linear(256, 256), nn.LeakyReLU(0.2), nn.Linear(256, n_subjects),
        )  # fmt: skip

    def forward(self, f_r: Tensor) -> Tensor:
        return self.net(f_r).float().unsqueeze(1)


class D(nn.Module):
    """Image discriminator with one trunk, under spectral norm, and two heads.

    image (B, 3, S, S), the AUs it should show (B, n) in [0, 5] ->
    `realism` (B, 1, S/8, S/8): real or synthesized?  `swap` (B, 1, S/8, S/8): self-reconstructed or swapped?
    With `conditional`, both add <features, embed(au)> at every place (projection discriminator, Miyato & Koyama, ICLR
    2018), so that a face without the required expression does not count as real. A missing label (NaN) is replaced by
    a learned intensity for that AU, since 0 would mean that the AU is absent.
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
        # (n,) in fifths of the scale; starts at the border of absent and present
        self.unknown = nn.Parameter(torch.full((c.n_aus,), PRESENT_AT / MAX_INTENSITY)) if c.conditional else None

    def forward(self, image: Tensor, au: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(image)  # (B, 4w, S/8, S/8)
        score = self.score(h).float()  # (B, 2, S/8, S/8)
        if self.embed is not None and self.unknown is not None:
            asked = torch.where(au.isnan(), self.unknown, au / MAX_INTENSITY)  # (B, n)
            embed = self.embed(asked).unflatten(1, (2, -1))  # (B, 2, 4w)
            score = score + torch.einsum("bkc,bcyx->bkyx", embed, h.to(embed.dtype)).float()
        return score.chunk(2, 1)
