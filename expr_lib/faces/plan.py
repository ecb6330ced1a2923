"""The plan of a data set: the parameters of every row, and the true answer of a swap between any two rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expr_lib.errors import MAX_SEED, InputError, check_range
from expr_lib.faces.parameters import Subjects, Views
from expr_lib.faces.render import Renderer
from expr_lib.faces.sample import generator, sample_expressions, sample_subjects, sample_views

VERSION = "2"
"""Version of the generator, which changes whenever the same seed gives different pixels."""

MAX_IMAGES = 10_000_000
"""Largest number of images in a data set; the plan of a larger one would not fit in memory."""
PORTION = 16 * 128 * 128
"""Number of pixels that are rendered together on a CPU."""


@dataclass(frozen=True)
class FacesConfig:
    """A data set of rendered faces; the same config gives the same people and expressions."""

    n_subjects: int = 400  # people
    images_per_subject: int = 40  # images of each person
    size: int = 64  # pixels a side
    seed: int = 0  # of the people and their expressions
    val: float = 0.1  # share of the people who are kept for validation
    test: float = 0.1  # share of the people who are kept for the test
    images_per_take: int = 1  # images per person and view; if above 1, the first shows the face at rest

    def __post_init__(self) -> None:
        check_range(
            self, n_subjects=(1, 1_000_000), images_per_subject=(1, 100_000), size=(8, 1024), seed=(0, MAX_SEED),
            val=(0, 1), test=(0, 1), images_per_take=(1, 100_000),
        )  # fmt: skip
        if self.val + self.test > 1:
            raise InputError(f"val {self.val:g}, test {self.test:g}: expected shares of 1 at most in all")
        if (images := self.n_subjects * self.images_per_subject) > MAX_IMAGES:
            raise InputError(
                f"n_subjects, images_per_subject: found {images:,} images, expected {MAX_IMAGES:,} at most"
            )
        if self.images_per_subject % self.images_per_take:
            raise InputError(
                f"images_per_take {self.images_per_take}: expected a divisor of images_per_subject "
                f"({self.images_per_subject})"
            )


@dataclass(frozen=True)
class FacePlan:
    """The parameters of every row of a data set, and the true answer of a swap between any two rows."""

    subjects: Subjects
    subject: Tensor  # (N,) int64
    split: np.ndarray  # (N,) "train" / "val" / "test"
    au: Tensor  # (N, 17)
    views: Views
    size: int
    take: Tensor  # (N,) int64; rows of one take differ in expression only; -1 = no take

    def __len__(self) -> int:
        return len(self.subject)

    def render(self, renderer: Renderer, rows, *, au_rows=None) -> tuple[Tensor, Tensor]:
        """Images (B, S, S, 3) uint8 and face masks (B, S, S) bool of the given rows.

        With `au_rows` the expressions come from those rows: `render(i, au_rows=j)` is identity and view of i with
        the expression of j, the true answer of a swap.
        """
        rows = torch.as_tensor(rows)
        au_rows = rows if au_rows is None else torch.as_tensor(au_rows)
        device = torch.device(renderer.device)
        # small portions fit the cache of a CPU: with 16 images of 128 pixels it is 1.5 times as fast as with 32
        n = max(1, PORTION // self.size**2) if device.type == "cpu" else max(1, len(rows))
        found = [
            renderer(
                self.subjects[self.subject[who]].to(device), self.au[shown].to(device),
                self.views[who].to(device), self.size,
            )
            for who, shown in zip(rows.split(n), au_rows.split(n), strict=True)
        ]  # fmt: skip
        image, mask = (torch.cat(x) for x in zip(*found, strict=True))  # (B, 3, S, S), (B, S, S)
        return (image.permute(0, 2, 3, 1) * 255.0).round().to(torch.uint8), mask  # (B,3,S,S) -> (B,S,S,3)


def plan_faces(config: FacesConfig) -> FacePlan:
    """The plan for a config, with row = subject * images_per_subject + k; it depends on the config only.

    The rows of one take have the same view and start with the face at rest, as in CK+ and RaFD.
    """
    n, per, k = config.n_subjects, config.images_per_subject, config.images_per_take
    streams = np.random.SeedSequence(config.seed).generate_state(4)
    subjects = sample_subjects(n, generator(streams[0]))
    au = sample_expressions(n * per, generator(streams[1]))
    views = sample_views(n * per // k, generator(streams[2]))
    take = torch.full((n * per,), -1)
    if k > 1:
        au[::k] = 0.0
        take = torch.arange(n * per) // k
        views = views[take]
    order = torch.randperm(n, generator=generator(streams[3])).numpy()
    split = np.full(n, "train", dtype="<U5")
    n_val, n_test = round(n * config.val), round(n * config.test)
    split[order[:n_val]] = "val"
    split[order[n_val : n_val + n_test]] = "test"
    subject = torch.arange(n).repeat_interleave(per)
    return FacePlan(subjects, subject, split[subject.numpy()], au, views, config.size, take)
