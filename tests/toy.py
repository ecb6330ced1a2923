"""Faces so simple that every right answer is known, shared by the tests of evaluate, probes and report.

A toy face is painted in two halves: the upper half is person and view, the lower half is the expression.
"""

import torch
from torch import nn

from expr_lib.faces.plan import FacesConfig, plan_faces
from expr_lib.facs import AU_NAMES, MAX_INTENSITY
from expr_lib.measure.judges import Judges

SIZE = 36
PLAN = plan_faces(FacesConfig(n_subjects=30, images_per_subject=12, size=SIZE, test=0.6))


class ToyRenderer:
    device = "cpu"

    def __call__(self, subjects, au, views, size):
        image = torch.full((len(au), 3, size, size), 0.5)
        image[:, :, : size // 2, :24] = (subjects.identity[:, :24] / 4.4 + 0.5).clamp(0, 1)[:, None, None]
        image[:, :, : size // 2, 24:] = (views.yaw / 64 + 0.5)[:, None, None, None]
        image[:, :, size // 2 :, : 2 * len(AU_NAMES)] = (au / MAX_INTENSITY).repeat_interleave(2, 1)[:, None, None]
        mask = torch.ones(len(au), size, size, dtype=torch.bool)
        return image, mask


class ToyAUJudge:
    def __call__(self, image):
        return (image[:, 0, -1, : 2 * len(AU_NAMES) : 2] + 1) / 2 * MAX_INTENSITY


class ToyIdentityJudge:
    threshold = 0.9

    def features(self, image):
        return image[:, 0, 0, :24]

    def embed(self, features):
        return nn.functional.normalize(features, dim=1)

    def __call__(self, image):
        return self.embed(self.features(image))


JUDGES = Judges(ToyAUJudge(), ToyIdentityJudge())


class Oracle:
    """Takes person and expression apart and puts them together without a loss."""

    def encode(self, image):
        return image[:, :, : SIZE // 2], image[:, :, SIZE // 2 :]

    def generate(self, f_f, f_r):
        return torch.cat([f_f, f_r], 2)


class Mixer(Oracle):
    """The same with f_r (B, n_aus, d), one row for each AU, as `mix` needs it; `spill` (n_aus, n_aus) adds cross-talk:
    row k of f_r also moves AU j by spill[k, j] times as much."""

    def __init__(self, spill=None, gain=1.0):
        n = len(AU_NAMES)
        self.spread = gain * (torch.eye(n) + (torch.zeros(n, n) if spill is None else spill))

    def encode(self, image):
        f_f, lower = super().encode(image)
        f_r = lower[:, 0, -1, : 2 * len(AU_NAMES) : 2] + 1  # (B, n_aus) in [0, 2]
        return torch.cat([f_f, lower], 2), f_r[..., None]

    def generate(self, f_f, f_r):
        upper, lower = super().encode(f_f)
        own = lower[:, 0, -1, : 2 * len(AU_NAMES) : 2] + 1
        au = own + (f_r[..., 0] - own) @ self.spread  # (B, n_aus)
        lower = lower.clone()
        lower[..., : 2 * len(AU_NAMES)] = (au - 1).repeat_interleave(2, 1)[:, None, None]
        return torch.cat([upper, lower], 2)


class OnMPS(torch.Tensor):
    """A tensor as on Apple's GPUs: it has no numbers of 64 bits, not even for a moment."""

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


class MPSJudge(ToyAUJudge):
    def __call__(self, image):
        return super().__call__(image.as_subclass(torch.Tensor)).as_subclass(OnMPS)
