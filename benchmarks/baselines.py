"""What people would otherwise use: four published ways to change an expression, written from their papers.

- `GANimation`    told the AU intensities of b. Pumarola et al., *GANimation*, ECCV 2018
- `StarGAN`       told the AU classes of b. Choi et al., *StarGAN*, CVPR 2018
- `relative AUs`  told the AUs of b less those of a. Ling et al., *Toward Fine-grained Facial Expression Manipulation*,
  ECCV 2020
- `DRIT`          shown b, told nothing. Lee et al., *Diverse Image-to-Image Translation via Disentangled
  Representations*, ECCV 2018

The first three edit an image as labels say, so at run time somebody must read the AUs of b: the guidance that the paper
argues against. `branch` is an estimator, `TrueLabels` the upper bound. To the evaluation each looks like ours,
`encode(image) -> f_f, f_r`, `generate(f_f, f_r) -> image`: for an editor f_f is the image, f_r what was read from it.

What all share and the papers have otherwise; further deviations stand with each. The critic has as many layers as
leave a map of 2 x 2, at most six, as published for 128 pixels. Faces are mirrored as ours are. The target is the
expression of the batch's other face. Averaged weights (EMA) are measured, as ours are. Width 64 is the published one,
with that of `like_ours` a baseline has as many parameters as ours.

In the papers of StarGAN and the relative editor the generator draws the whole face anew. In 2,400 steps of 8 pairs
StarGAN's did not learn to: instance norm takes the colours away. Here it draws what to add to the image.

In the papers instance norm follows the first layer. It subtracts the mean of each map, and with it what a label, which
is the same everywhere, adds to the map: the label enters at the zeros around the image alone. Here that norm is left
out. The label head of a critic learns to read expressions slowly, and an editor can't learn from it sooner. In a short
training an editor may therefore have a `guide` besides: our AU branch, warmed up alone, frozen, reads each edit as it
reads our own swaps.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expr_lib.datasets import to_uint8
from expr_lib.facs import MAX_INTENSITY
from expr_lib.losses import weighted_mean
from expr_lib.model import ModelConfig, Swapper, au_classes
from expr_lib.step import Batch, augment, frozen, partner

METHODS = ("GANimation", "StarGAN", "relative AUs", "DRIT")
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
    d: int = 8  # numbers in the attribute of DRIT
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


class TrueLabels:
    """A renderer that remembers the AUs of whatever it drew: the best guidance there can be, for rendered faces only.

    Give it to `evaluate` in place of the renderer and its `read` to an editor. Images are known by their bytes.
    """

    def __init__(self, renderer: Any) -> None:
        self.renderer, self.device = renderer, renderer.device
        self.seen: dict[bytes, Tensor] = {}

    def __call__(self, subjects: Any, au: Tensor, views: Any, size: int) -> tuple[Tensor, Tensor]:
        image, mask = self.renderer(subjects, au, views, size)  # (B, 3, S, S) in [0, 1], (B, S, S)
        self.seen |= dict(zip(_keys(image * 2 - 1), au.detach().cpu(), strict=True))
        return image, mask

    def read(self, image: Tensor) -> Tensor:
        """image (B, 3, S, S) in [-1, 1] -> its true AUs (B, n); `ValueError` for an image that was not drawn here."""
        try:
            return torch.stack([self.seen[key] for key in _keys(image)]).to(image.device)
        except KeyError:
            raise ValueError("found an image that this renderer has not drawn: it has no true labels") from None


def _keys(image: Tensor) -> list[bytes]:
    return [x.contiguous().numpy().tobytes() for x in to_uint8(image).cpu()]


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
    """Residual block with instance norm; with `style` numbers its norms are scaled and shifted by them."""

    def __init__(self, channels: int, style: int = 0) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, 1, 1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = (nn.InstanceNorm2d(channels, affine=not style) for _ in range(2))
        self.film = nn.Linear(style, 4 * channels) if style else None

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        scale1 = shift1 = scale2 = shift2 = torch.zeros((), device=x.device, dtype=x.dtype)
        if self.film is not None and style is not None:
            scale1, shift1, scale2, shift2 = self.film(style)[:, :, None, None].chunk(4, 1)  # each (B, C, 1, 1)
        h = F.relu(self.norm1(self.conv1(x)) * (1 + scale1) + shift1)
        return x + self.norm2(self.conv2(h)) * (1 + scale2) + shift2


class Painter(nn.Module):
    """StarGAN's generator: image (B, 3, S, S), what is asked (B, K) -> image (B, 3, S, S), mask (B, 1, S, S) or None.

    With `masked` (GANimation) it paints colours and says where: mask 0 leaves the pixel as it is. Without, it paints
    what to add to the image. With `skip` (a U-Net) the way up sees what the way down saw.
    """

    def __init__(self, c: BaselineConfig, n_asked: int, masked: bool = False, skip: bool = False) -> None:
        super().__init__()
        w, self.skip, more = c.width, skip, 2 if skip else 1
        # no norm here: what is asked is constant over the image, and instance norm would take away what it adds
        self.stem = nn.Sequential(nn.Conv2d(3 + n_asked, w, 7, 1, 3), nn.ReLU())
        self.down1, self.down2 = conv(w, 2 * w, 4, 2), conv(2 * w, 4 * w, 4, 2)
        self.blocks = nn.Sequential(*(Residual(4 * w) for _ in range(c.blocks)))  # (B, 4w, S/4, S/4)
        self.up1, self.up2 = up(4 * w, 2 * w), up(2 * w * more, w)
        self.color = nn.Conv2d(w * more, 3, 7, 1, 3)
        self.mask = nn.Conv2d(w * more, 1, 7, 1, 3) if masked else None

    def forward(self, image: Tensor, asked: Tensor) -> tuple[Tensor, Tensor | None]:
        maps = asked[:, :, None, None].expand(-1, -1, *image.shape[2:])  # (B, K) -> (B, K, S, S)
        h1 = self.stem(torch.cat([image, maps], 1))  # (B, w, S, S)
        h2 = self.down1(h1)  # (B, 2w, S/2, S/2)
        h = self.up1(self.blocks(self.down2(h2)))  # (B, 2w, S/2, S/2)
        h = self.up2(torch.cat([h, h2], 1) if self.skip else h)  # (B, w, S, S)
        h = torch.cat([h, h1], 1) if self.skip else h
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


# --------------------------------------------------------------------------------------- three editors, told by labels


def intensities(target: Tensor, source: Tensor, c: BaselineConfig) -> Tensor:
    """Asked for: how strong each AU should be, in [0, 1]; 0 where the label is missing. (B, n) -> (B, n)."""
    return target.nan_to_num() / MAX_INTENSITY


def classes(target: Tensor, source: Tensor, c: BaselineConfig) -> Tensor:
    """Asked for: the class of each AU, one-hot; all 0 where the label is missing. (B, n) -> (B, n L)."""
    cls = au_classes(target, (c.levels,))
    return (F.one_hot(cls.clamp_min(0), c.levels) * (cls >= 0)[..., None]).flatten(1).float()


def differences(target: Tensor, source: Tensor, c: BaselineConfig) -> Tensor:
    """Asked for: how much each AU should change, in [-1, 1]; 0 where a label is missing. (B, n) -> (B, n)."""
    return (target - source).nan_to_num() / MAX_INTENSITY


def tell_intensities(score: Tensor, au: Tensor, c: BaselineConfig) -> Tensor:
    """L = mean (score - au / 5)^2 over the labels there are. score, au (B, n)."""
    return weighted_mean((score - au.nan_to_num() / MAX_INTENSITY).square(), ~au.isnan())


def tell_classes(score: Tensor, au: Tensor, c: BaselineConfig) -> Tensor:
    """L = sum_k cross-entropy of the class of AU k, mean over images. score (B, n L), au (B, n)."""
    score = score.unflatten(1, (-1, c.levels)).transpose(1, 2)  # (B, n L) -> (B, L, n)
    return F.cross_entropy(score, au_classes(au, (c.levels,)), ignore_index=-1, reduction="sum") / len(au)


class Rule(NamedTuple):
    """What sets one editor of labels apart from another."""

    ask: Callable[[Tensor, Tensor, BaselineConfig], Tensor]  # AUs of target and source -> what the generator is told
    tell: Callable[[Tensor, Tensor, BaselineConfig], Tensor]  # the critic's loss on labels
    weight: float  # of that loss
    masked: bool = False
    relative: bool = False  # told differences, so a difference of 0 must change nothing


GUIDE = 160.0  # weight of what the guide says, that of GANimation's label loss

RULES = {
    # Pumarola et al. tell the AUs that an estimator read from the training images; ours are true. Their weight 4000 of
    # the label loss is divided by a batch of 25 in their code; the target is not blended with the source.
    "GANimation": Rule(intensities, tell_intensities, 160.0, masked=True),
    # Choi et al. have one domain of several (an emotion) or a few binary attributes: here each AU has classes.
    "StarGAN": Rule(classes, tell_classes, 1.0),
    # Ling et al. strengthen the skips of their U-Net by modules that fuse scales (here: plain skips), and have a second
    # critic for (source, change, target) of one person; our pairs are of two people, so the critic reads AUs as above.
    "relative AUs": Rule(differences, tell_intensities, 160.0, relative=True),
}


class Editor(nn.Module):
    """An image and labels in, the edited image out: `GANimation`, `StarGAN` or `relative AUs`.

    Critic: WGAN-GP, and it reads the labels of real images. Generator: realism, the critic must read the labels of b
    from the edit, editing back must give the image (L1, 10); where there is a mask it should be wide and smooth, where
    changes are told none must change nothing (L1, 10).
    """

    def __init__(self, name: str, c: BaselineConfig, read: Estimator | None = None) -> None:
        super().__init__()
        self.name, self.c, self.rule, self.read, self.autocast = name, c, RULES[name], read, nullcontext
        self.guide: Swapper | None = None  # whose AU branch reads edits too, while training; None: as published
        labels = c.n_aus * c.levels if self.rule.ask is classes else c.n_aus
        self.G = Painter(c, labels, self.rule.masked, self.rule.relative)
        self.D = Critic(c, labels)
        self.opt_G, self.opt_D = adam(self.G, c.lr), adam(self.D, c.lr)

    def edit(self, image: Tensor, target: Tensor, source: Tensor) -> tuple[Tensor, Tensor | None]:
        """image (B, 3, S, S), the AUs it should show and those it shows (B, n) -> edited image, mask or None."""
        return self.G(image, self.rule.ask(target, source, self.c))

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 3, S, S) -> f_f, the image itself; f_r (B, n, 1), the AUs read from it."""
        assert self.read is not None, "an editor needs an estimator of AUs at run time"
        return image, self.read(image).unsqueeze(-1)  # (B, n) -> (B, n, 1)

    def generate(self, f_f: Tensor, f_r: Tensor) -> Tensor:
        """f_f (B, 3, S, S) an image, f_r (B, n, 1) the AUs it should show -> image (B, 3, S, S) in [-1, 1]."""
        target = f_r[..., 0]  # (B, n, 1) -> (B, n)
        source = self.encode(f_f)[1][..., 0] if self.rule.relative else target
        return self.edit(f_f, target, source)[0].clamp(-1, 1)

    def critic_step(self, batch: Batch) -> dict[str, Tensor]:
        """The critic learns; the generator stays as it is, bit for bit."""
        with self.autocast():
            with torch.no_grad():
                fake = self.edit(batch.x, partner(batch.au), batch.au)[0]
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
            fake, mask = self.edit(x, au_b, au)
            score, labels = self.D(fake)
            back, mask_back = self.edit(fake, au, au_b)
            loss = {
                "realism": -score.mean(),
                "labels": self.rule.weight * self.rule.tell(labels, au_b, self.c),
                "cycle": 10 * F.l1_loss(back, x),
            }
            if self.guide is not None:
                with frozen(self.guide):
                    read = self.guide.read_au(augment(fake))[1].sigmoid()  # (B, n) of 5
                loss["guide"] = GUIDE * tell_intensities(read, au_b, self.c)
            if self.rule.relative:
                loss["same"] = 10 * F.l1_loss(self.edit(x, au, au)[0], x)
        if mask is not None and mask_back is not None:  # the published weights, on means instead of sums
            loss["mask"] = 0.1 * sum((1 - m).mean() for m in (mask, mask_back))
            loss["smooth"] = sum(m.diff(dim=k).square().mean() for m in (mask, mask_back) for k in (2, 3))
        return optimizer_step(self.opt_G, loss)


# ------------------------------------------------------------------------------------- content and attribute, no label


class ContentAttribute(nn.Module):
    """DRIT's generator side: two encoders that share nothing, and the generator that joins what they say."""

    def __init__(self, c: BaselineConfig) -> None:
        super().__init__()
        w, style = c.width, 4 * c.width
        self.content = nn.Sequential(
            conv(3, w, 7), conv(w, 2 * w, 4, 2), conv(2 * w, 4 * w, 4, 2), *(Residual(4 * w) for _ in range(4))
        )  # (B, 4w, S/4, S/4)
        steps = (nn.Sequential(nn.Conv2d(i, o, 4, 2, 1), nn.ReLU()) for i, o in pairwise((w, 2 * w, *[4 * w] * 3)))
        self.attribute = nn.Sequential(  # no norm: it would take away contrast and colour
            nn.Conv2d(3, w, 7, 1, 3),
            nn.ReLU(),
            *steps,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * w, 2 * c.d),
        )  # (B, 2d)
        self.style = nn.Sequential(nn.Linear(c.d, style), nn.ReLU(), nn.Linear(style, style), nn.ReLU())
        self.blocks = nn.ModuleList(Residual(4 * w, style) for _ in range(4))
        self.paint = nn.Sequential(up(4 * w, 2 * w), up(2 * w, w), nn.Conv2d(w, 3, 7, 1, 3))

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """image (B, 3, S, S) -> content (B, 4w, S/4, S/4), noisy in training; attribute (B, d), its log-variance."""
        content = self.content(image).float()
        if self.training:
            content = content + torch.randn_like(content)
        mean, log_variance = self.attribute(image).float().chunk(2, 1)  # (B, 2d) -> (B, d), (B, d)
        return content, mean, log_variance

    def generate(self, content: Tensor, attribute: Tensor) -> Tensor:
        h, style = content, self.style(attribute)  # (B, 4w)
        for block in self.blocks:
            h = block(h, style)
        return self.paint(h).float().tanh()


class ContentCritic(nn.Module):
    """content (B, 4w, S/4, S/4), attribute (B, d) -> (B, 1): do the two come from one image?"""

    def __init__(self, c: BaselineConfig) -> None:
        super().__init__()
        w = 4 * c.width
        self.net = nn.Sequential(
            nn.Conv2d(w + c.d, w, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(w, w, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(w, 1),
        )  # fmt: skip

    def forward(self, content: Tensor, attribute: Tensor) -> Tensor:
        maps = attribute[:, :, None, None].expand(-1, -1, *content.shape[2:])  # (B, d) -> (B, d, S/4, S/4)
        return self.net(torch.cat([content, maps], 1)).float()


def bce(score: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(score, torch.full_like(score, target))


class DRIT(nn.Module):
    """Content of a, attribute of b, no label anywhere: what an attribute is, the losses and 8 numbers decide.

    Lee et al. have two domains, and a content critic that must not tell the domain from the content. Unpaired faces
    have none: here it must not tell whether an attribute belongs to the content, so that what the attribute says does
    not stand in the content. Encoders, generator and image critic exist once instead of once for each domain.
    Cross-cycle, self-reconstruction and latent regression have weight 10, the two KL terms 0.01, as published. Their
    image critic is GANimation's and StarGAN's here, without a label head; the loss is theirs (cross-entropy).
    """

    def __init__(self, c: BaselineConfig) -> None:
        super().__init__()
        self.name, self.c, self.autocast = "DRIT", c, nullcontext
        self.G = ContentAttribute(c)
        self.D = nn.ModuleDict({"image": Critic(c, 0), "content": ContentCritic(c)})
        self.opt_G, self.opt_D = adam(self.G, c.lr), adam(self.D, c.lr)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 3, S, S) -> f_f, the content (B, 4w, S/4, S/4); f_r, the attribute (B, d)."""
        content, attribute, _ = self.G.encode(image)
        return content, attribute

    def generate(self, f_f: Tensor, f_r: Tensor) -> Tensor:
        """content (B, 4w, S/4, S/4), attribute (B, d) -> image (B, 3, S, S) in [-1, 1]."""
        return self.G.generate(f_f, f_r)

    def sampled(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """content; attribute drawn around its mean; KL of that distribution to the standard normal one."""
        content, mean, log_variance = self.G.encode(image)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return content, mean + torch.randn_like(mean) * (log_variance / 2).exp(), kl

    def critic_step(self, batch: Batch) -> dict[str, Tensor]:
        """Both critics learn; the generator side stays as it is, bit for bit."""
        with self.autocast():
            with torch.no_grad():
                content, attribute, _ = self.sampled(batch.x)
                swap = self.generate(content, partner(attribute))
                drawn = self.generate(content, torch.randn_like(attribute))
            score = {name: self.D["image"](x)[0] for name, x in (("real", batch.x), ("swap", swap), ("drawn", drawn))}
            loss = {
                "D_image": 2 * bce(score["real"], 1) + bce(score["swap"], 0) + bce(score["drawn"], 0),
                "D_content": bce(self.D["content"](content, attribute), 1)
                + bce(self.D["content"](content, partner(attribute)), 0),
            }
        return optimizer_step(self.opt_D, loss)

    def generator_step(self, batch: Batch) -> dict[str, Tensor]:
        """Encoders and generator learn; both critics stay as they are, bit for bit."""
        x = batch.x
        with frozen(self.D), self.autocast():
            content, attribute, kl = self.sampled(x)
            swap, itself = self.generate(content, partner(attribute)), self.generate(content, attribute)
            content_swap, attribute_swap, _ = self.sampled(swap)
            normal = torch.randn_like(attribute)
            drawn = self.generate(content, normal)
            loss = {
                "realism": bce(self.D["image"](swap)[0], 1) + bce(self.D["image"](drawn)[0], 1),
                "hide": bce(self.D["content"](content, attribute.detach()), 0.5),  # the content is what must give way
                "cycle": 10 * F.l1_loss(self.generate(content_swap, partner(attribute_swap)), x),
                "same": 10 * F.l1_loss(itself, x),
                "latent": 10 * F.l1_loss(self.G.encode(drawn)[1], normal),
                "kl": 0.01 * (kl + content.square().mean()),
            }
        return optimizer_step(self.opt_G, loss)


# --------------------------------------------------------------------------------------------------- one small surface

Baseline = Editor | DRIT


def build(name: str, c: BaselineConfig, read: Estimator | None = None) -> Baseline:
    """A baseline of `METHODS` with its optimizers, in training mode; an editor needs `read` to encode."""
    return DRIT(c) if name == "DRIT" else Editor(name, c, read)


def train_step(method: Baseline, batch: Batch, step: int) -> dict[str, Tensor]:
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
        return min(found, key=lambda c: abs(n_parameters(build(name, c).G) - ours))
