"""The generator of the second generation, which moves the pixels of a face instead of drawing it anew.

    T = take(I; f_r)       the face at rest: the image without its expression, and the detail that its reconstruction
                           put(T, m; f_r) would lose
    İ = put(T, m; f_r^b)   the face at rest with the expression of b

`take` and `put` are two networks of one form (`Mover`). From a reduced image, a `Mover` predicts where each pixel comes
from (a flow), where something new must be painted (a mask), and the new colours:

    out = (1 - mask) warp(picture, flow) + mask colours

All three can be enlarged, so a network with an input of 64 or 128 pixels moves an image of any size.

Our choice, after ICface (Tripathy et al., WACV 2020: to a neutral face, then to the expression), First Order Motion
Model (Siarohin et al., NeurIPS 2019: flow and occlusion mask) and PIRenderer (Ren et al., ICCV 2021: map, warp, edit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expr_lib.blocks import Block, ModelConfig, norm

REACH = 0.25
"""The largest displacement of a pixel, in half sides of the image."""


def resize(image: Tensor, size: int) -> Tensor:
    """(B, C, R, R) -> (B, C, size, size): averaged to shrink, bilinear to enlarge, unchanged at the same size."""
    if image.shape[-1] == size:
        return image
    if image.shape[-1] > size:
        return F.interpolate(image, size=(size, size), mode="area")
    return F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Sample the image along a flow: out(x) = image(x + flow(x)), bicubic.

    image (B, 3, R, R); flow (B, 2, R, R), x and y in half sides. A flow of 0 leaves a pixel unchanged up to rounding;
    outside the image the border is repeated. Two bilinear warps would remove four fifths of the finest detail (variance
    of the Laplacian), two bicubic ones remove less than half.
    """
    place = (torch.arange(image.shape[-1], device=image.device) + 0.5) / image.shape[-1] * 2 - 1  # (R,)
    grid = torch.stack(torch.meshgrid(place, place, indexing="xy"), -1)  # (R, R, 2): x, y
    return F.grid_sample(
        image, grid + flow.permute(0, 2, 3, 1), mode="bicubic", padding_mode="border", align_corners=False
    )


Edit = tuple[Tensor, Tensor, Tensor]
"""What is done to a picture: a flow (B, 2, ...) in half sides, a mask (B, 1, ...) and colours (B, 3, ...)."""


def edited(picture: Tensor, edit: Edit) -> Tensor:
    """The picture (B, 3, R, R) moved and painted over by an edit, which is enlarged to it -> (B, 3, R, R)."""
    flow, mask, colours = (resize(x, picture.shape[-1]) for x in edit)
    return (1 - mask) * warp(picture.float(), flow) + mask * colours


def carried(lost: Tensor, edit: Edit) -> Tensor:
    """What a reconstruction has lost, (B, 3, R, R), where `edit` has moved it; nothing of it where `edit` painted.

    Added to the face at rest, it brings back the fine detail that two warps and a faint mask remove: back-projection
    (Irani & Peleg, *Improving resolution by image registration*, CVGIP 1991) with one step. The fourth power also
    leaves out what is painted in part, above all the inside of the mouth. Our choice.
    """
    flow, mask, _ = (resize(x, lost.shape[-1]) for x in edit)
    return (1 - mask) ** 4 * warp(lost, flow)


def in_one(first: Edit, second: Edit, size: int) -> Tensor:
    """Two edits, one after the other, as one that samples the picture once: out(x) = keep(x) I(x + flow(x)) + paint(x).

    Returns flow, in half sides, keep and paint, one behind the other: (B, 2 + 1 + 3, size, size). They are smooth, so
    they can be enlarged to any picture; `size` of some hundred pixels suffices.
    """

    def enlarged(edit: Edit) -> Edit:
        flow, mask, colours = (F.interpolate(x, (size, size), mode="bicubic", align_corners=False) for x in edit)
        return flow, mask.clamp(0, 1), colours

    (flow, mask, colours), (flow2, mask2, colours2) = enlarged(first), enlarged(second)
    flow, mask, paint = warp(torch.cat([flow, mask, mask * colours], 1), flow2).split((2, 1, 3), 1)
    keep = (1 - mask2) * (1 - mask.clamp(0, 1))
    return torch.cat([flow + flow2, keep, (1 - mask2) * paint + mask2 * colours2], 1)


ALIKE = 0.25
"""Colours, in [-1, 1], that differ by less count as the same in `beyond`."""
FAINT = 0.1
"""A mask below this paints nothing in `beyond`: over skin it would only take contrast away."""


def beyond(own: Tensor, edits: Tensor) -> Tensor:
    """What edits do beyond the own ones, which put a face together again: (B, 6, s, s) each, as from `in_one`.

    A network that has seen rendered faces only does not put a photograph together again exactly. With the difference of
    the two flows, and only what is painted anew, nothing of it is lost: if both are the same, every pixel stays as it
    is. Our choice. On held-out renders it costs a little of the gain, on photographs the swaps are sharper and nearer
    to the person (`benchmarks/photographs.py`).
    """
    (flow0, keep0, paint0), (flow, keep, paint) = (x.split((2, 1, 3), 1) for x in (own, edits))
    colours0, colours = (paint / (1 - keep).clamp(min=1e-3) for keep, paint in ((keep0, paint0), (keep, paint)))
    same = torch.exp(-((colours - colours0) / ALIKE).square().sum(1, keepdim=True))
    new = (((1 - keep) - (1 - keep0) * same - FAINT) / (1 - FAINT)).clamp(min=0)
    return torch.cat([flow - flow0, 1 - new, new * colours.clamp(-1, 1)], 1)


@dataclass(frozen=True, eq=False)
class AtRest:
    """f_f of the second generation, for B images; `f_f[rows]` selects some of them."""

    face: Tensor  # (B, 3, R, R)  T, the face at rest
    map: Tensor  # (B, C, 16, 16)  m, what T cannot show, such as teeth behind closed lips

    @staticmethod
    def channels(c: ModelConfig) -> int:
        """Channels of `as_map`."""
        return 3 * 4 * 4 + c.c_f

    def as_map(self) -> Tensor:
        """T, reduced to 64 pixels, and m as one map (B, 48 + C, 16, 16), the input of discriminators and probes."""
        return torch.cat([F.pixel_unshuffle(resize(self.face, 4 * self.map.shape[-1]), 4), self.map], 1)

    def detach(self) -> AtRest:
        return AtRest(self.face.detach(), self.map.detach())

    def __len__(self) -> int:
        return len(self.face)

    def __getitem__(self, rows: Any) -> AtRest:
        return AtRest(self.face[rows], self.map[rows])


Free = Tensor | AtRest
"""f_f, either a map (B, C, S/4, S/4) or the face at rest with its map."""


def as_map(f_f: Free) -> Tensor:
    """f_f as one map (B, ...), the input of discriminators and probes."""
    return f_f.as_map() if isinstance(f_f, AtRest) else f_f


def twice(f_f: Free) -> Free:
    """Repeat f_f of B images -> f_f of 2B images."""
    if isinstance(f_f, AtRest):
        return AtRest(torch.cat([f_f.face, f_f.face]), torch.cat([f_f.map, f_f.map]))
    return torch.cat([f_f, f_f])


class Mover(nn.Module):
    """picture (B, 3, R, R), map (B, c, 16, 16), f_r (B, n, d) -> picture (B, 3, R, R) in [-1, 1].

    Before training it nearly copies the picture: the flow is 0, and the mask mixes in 5 % of gray.
    """

    def __init__(self, c: ModelConfig, c_map: int) -> None:
        super().__init__()
        w, style, self.size, self.patch = c.width, 2 * c.width, c.size, c.patch
        self.style = nn.Sequential(nn.Linear(c.n_aus * c.d, style), nn.SiLU(), nn.Linear(style, style), nn.SiLU())
        self.fine = nn.Conv2d(3 * c.patch**2, w // 2, 3, padding=1)  # (B, w/2, 32, 32)
        self.coarse, self.more = nn.Conv2d(w // 2, w, 3, 2, 1), nn.Conv2d(c_map, w, 1)  # (B, w, 16, 16)
        self.block1 = Block(w, style)
        self.gate, self.paint = nn.Conv2d(w, c.n_aus, 3, padding=1), nn.Parameter(torch.randn(c.n_aus, c.d, w) * 0.1)
        self.block2, self.block3 = Block(w, style), Block(w, style)
        self.up32, self.block4 = nn.Conv2d(w, w // 2, 3, padding=1), Block(w // 2, style)
        self.up64, self.norm5 = nn.Conv2d(w // 2, w // 4, 3, padding=1), norm(w // 4)
        self.sharp = max(1, c.size // 64)  # mask and colours have finer detail than the flow
        self.flow = nn.Conv2d(w // 4, 2, 3, padding=1)
        self.fill = nn.Conv2d(w // 4, 4 * self.sharp**2, 3, padding=1)
        for last in (self.flow, self.fill):
            nn.init.normal_(last.weight, 0, 1e-3)
            nn.init.constant_(last.bias, 0)  # type: ignore[arg-type]

    def forward(self, picture: Tensor, map: Tensor, f_r: Tensor) -> Tensor:
        return edited(picture, self.edits(resize(picture, self.size), map, f_r))

    def edits(self, picture: Tensor, map: Tensor, f_r: Tensor) -> Edit:
        """picture (B, 3, S, S) -> flow (B, 2, 64, 64) in half sides, mask (B, 1, P, P), colours (B, 3, P, P).

        P is S, or 64 if S is smaller.
        """
        style = self.style(f_r.flatten(1))  # (B, n * d) -> (B, style)
        fine = self.fine(F.pixel_unshuffle(picture, self.patch))  # (B, w/2, 32, 32)
        h = self.block1(self.coarse(F.silu(fine)) + self.more(map), style)  # (B, w, 16, 16)
        paint = torch.einsum("bnd,ndw->bnw", f_r, self.paint)  # what each AU adds
        h = h + torch.einsum("bnyx,bnw->bwyx", self.gate(h).sigmoid(), paint.to(h.dtype))  # and where it adds it
        h = self.block3(self.block2(h, style), style)
        h = self.block4(self.up32(F.interpolate(h, scale_factor=2.0)) + fine, style)  # (B, w/2, 32, 32)
        h = F.silu(self.norm5(self.up64(F.interpolate(h, scale_factor=2.0))))  # (B, w/4, 64, 64)
        flow = REACH * F.avg_pool2d(self.flow(h).float(), 3, 1, 1, count_include_pad=False).tanh()  # smooth
        fill = F.pixel_shuffle(self.fill(h), self.sharp).float()  # (B, 4, P, P)
        return flow, (fill[:, :1] - 3).sigmoid(), fill[:, 1:].tanh()
