"""One training step inside takes, i.e. images of one person in one view, for which the true answer of a swap is known.

The target of `G(f_f^1, f_r^2)` is image 2 of the take, so f_f^1 must not contain the expression of image 1. The losses
across people are those of the paper; each can be added by its weight. Our choice; see `expr_lib/README.md`.

Without labels the AU branch only reads: what it reads from an image stands for the labels, and E and the branch stay as
they are, so that the meaning of f_r does not drift.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expr_lib import processes
from expr_lib.losses import (
    ADVERSARIES,
    au_loss,
    class_confusion_loss,
    difference_weight,
    lsgan_g_loss,
    reconstruction_loss,
    take_loss,
)
from expr_lib.step import (
    Batch,
    Nets,
    Passes,
    TrainConfig,
    augment,
    end_warmup,
    frozen,
    optimizer_step,
    partner,
    update_feature_D,
    update_image_D,
)

ITSELF = 0.25
"""Share of the images that are reconstructed from their own features; the others get the f_r of their partner."""
LONGEST = 5.0
"""Norm to which longer gradients are clipped."""


def stranger(t: Tensor, back: bool = False) -> Tensor:
    """Roll by one, so that every image gets a partner from another take, or roll back."""
    return t.roll(-1 if back else 1, 0)


def take_step(nets: Nets, batch: Batch, c: TrainConfig) -> dict[str, Tensor]:
    """One step from pairs inside takes: remove the expression, put on one of the same take; returns all losses."""
    end_warmup(nets.swapper)
    x, w, swapper, n = batch.x, c.take_weights, nets.swapper, len(batch.x)
    across = any((w.cycle, w.realism, w.swap))
    row = torch.arange(n, device=x.device)
    itself = processes.draw(torch.rand, n, device=x.device) < ITSELF
    source = torch.where(itself, row, partner(row))  # (2B,) image whose expression is put on

    with nets.accelerator.autocast():
        f_f, f_r = swapper.encode(
            x, augment(x, shift=False)
        )  # E sees an augmented image, but the original pixels are moved
        given = f_r.detach() if c.detach_f_r else f_r
        answer = swapper.generate(f_f, given[source])  # (2B, 3, S, S)
        swap = swapper.generate(f_f, stranger(given)) if across else answer
        cycle = swap
        if w.cycle:
            f_f_swap, f_r_swap = swapper.encode(swap.detach())
            cycle = swapper.generate(f_f_swap, stranger(f_r_swap.detach(), back=True))

    loss: dict[str, Tensor] = {}
    if w.realism or w.swap:
        loss |= update_image_D(nets, batch, Passes(f_f, f_r, answer, swap, f_f, cycle), c)
    if w.hide_au or w.hide_subject:
        loss |= update_feature_D(nets, batch, f_f, f_r, c)

    loss["au"] = au_loss(swapper.DG.related.au(f_r), batch.au, nets.au_weight)
    loss["take"] = take_loss(answer, x[source], difference_weight(x, partner(x)))
    total = w.au * loss["au"] + w.take * loss["take"]
    if (rest := swapper.rest(f_f)) is not None and batch.rest is not None and batch.has_rest is not None:
        # if no image of the take is at rest, its two predicted faces at rest must be equal
        target = torch.where(batch.has_rest > 0, batch.rest, partner(rest.detach()))
        loss["rest"] = take_loss(rest, target, difference_weight(x, target))
        total = total + w.rest * loss["rest"]
    with nets.accelerator.autocast():
        if w.hide_au:
            with frozen(nets.D_f):
                loss["hide_au"] = ADVERSARIES[c.adversary][1](nets.D_f(f_f), batch.cls, nets.class_weight)
            total = total + w.hide_au * loss["hide_au"]
        if w.hide_subject:
            with frozen(nets.D_r):
                loss["hide_subject"] = class_confusion_loss(nets.D_r(f_r), batch.subject, nets.subject_weight)
            total = total + w.hide_subject * loss["hide_subject"]
        if w.realism or w.swap:
            with frozen(nets.D):
                realism, consistent = nets.D(swap, stranger(batch.au))
            loss["realism"], loss["swap"] = lsgan_g_loss(realism), lsgan_g_loss(consistent)
            total = total + w.realism * loss["realism"] + w.swap * loss["swap"]
        if w.guide:
            au = swapper.intensities(f_r).detach() if swapper.reads_only else batch.au
            shown, asked = (swap, stranger(au)) if across else (answer, au[source])
            with frozen(swapper):
                _, logit = swapper.read_au(augment(shown))
            loss["guide"] = au_loss(logit, asked, nets.au_weight)
            total = total + w.guide * loss["guide"]
    if w.cycle:
        loss["cycle"] = reconstruction_loss(cycle, x)
        total = total + w.cycle * loss["cycle"]
    loss["G"] = total
    optimizer_step(nets, nets.opt_G, total, LONGEST)
    return loss
