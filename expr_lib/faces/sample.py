"""Sampling people, expressions and views: all random numbers of rendered faces.

Identity, expression and view are independent by construction (our choice). In real data they are not, which is one of
the reasons why disentanglement is hard to measure there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expr_lib.faces.parameters import Subjects, Views
from expr_lib.facs import AU_NAMES, MAX_INTENSITY

N_IDENTITY = 80


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(seed))


# ------------------------------------------------------------------------------------------------------------- people

SKIN_TONES = torch.tensor(  # sRGB, light to dark
    [[240, 202, 180], [232, 190, 160], [224, 178, 143], [201, 150, 113],
     [171, 120, 85], [140, 94, 67], [112, 75, 56], [88, 60, 47]]
) / 255.0  # fmt: skip
HAIR_COLORS = torch.tensor(
    [[24, 20, 19], [44, 31, 25], [72, 48, 34], [110, 74, 48], [160, 118, 74],
     [205, 168, 118], [128, 58, 34], [150, 148, 146], [206, 204, 200]]
) / 255.0  # fmt: skip
IRIS_COLORS = (
    torch.tensor([[66, 40, 24], [92, 58, 30], [110, 92, 48], [84, 108, 84], [86, 122, 150], [110, 134, 150]]) / 255.0
)
LIP_PAINTS = torch.tensor([[150, 28, 40], [176, 52, 66], [120, 40, 60], [190, 88, 84], [96, 30, 44]]) / 255.0
SHIRTS = torch.tensor(
    [[32, 36, 44], [226, 226, 222], [70, 88, 120], [120, 50, 52],
     [64, 92, 72], [150, 130, 104], [90, 70, 110], [180, 150, 70]]
) / 255.0  # fmt: skip


def uniform(n: int, low: float, high: float, g: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=g)


def sample_subjects(n: int, g: torch.Generator) -> Subjects:
    """n people. Skin tone, hair, make-up and face shape are drawn independently."""
    tone = uniform(n, 0.0, len(SKIN_TONES) - 1.001, g)
    low = tone.long()
    skin = torch.lerp(SKIN_TONES[low], SKIN_TONES[low + 1], (tone - low)[:, None])
    skin = (skin + 0.02 * torch.randn(n, 3, generator=g) * torch.tensor([1.0, 0.7, 1.0])).clamp(0.1, 0.97)
    darkness = tone / (len(SKIN_TONES) - 1)
    # dark hair everywhere, light hair mostly on light skin
    choice = (
        torch.rand(n, len(HAIR_COLORS), generator=g).log().neg()
    )  # a weighted choice by exponential variables: the smallest wins
    weight = torch.tensor([3.0, 3, 3, 2, 1.6, 1.2, 1, 1, 0.8]).repeat(n, 1)
    weight[:, 3:7] *= (1.0 - 1.1 * darkness).clamp(0.02, 1.0)[:, None]
    hair = HAIR_COLORS[(choice / weight).argmin(1)] * uniform(n, 0.85, 1.15, g)[:, None]
    iris_weight = torch.tensor([4.0, 3, 1.5, 1, 1.5, 1]).repeat(n, 1)
    iris_weight[:, 2:] *= (1.0 - 1.2 * darkness).clamp(0.02, 1.0)[:, None]
    iris = IRIS_COLORS[(torch.rand(n, len(IRIS_COLORS), generator=g).log().neg() / iris_weight).argmin(1)]
    style = torch.rand(n, generator=g)  # cropped, short, full, long
    volume = torch.where(style < 0.2, uniform(n, 0.002, 0.005, g), uniform(n, 0.008, 0.020, g))
    volume = torch.where((style > 0.55) & (style < 0.7), uniform(n, 0.025, 0.045, g), volume)
    length = torch.where(style > 0.7, uniform(n, -0.16, 0.0, g), torch.ones(n))
    bearded = torch.rand(n, generator=g) < 0.3
    painted = torch.rand(n, generator=g) < 0.3
    natural = skin * torch.tensor([0.86, 0.60, 0.60])
    lip_paint = torch.where(painted & ~bearded, uniform(n, 0.4, 0.9, g), torch.zeros(n))
    return Subjects(
        identity=torch.randn(n, N_IDENTITY, generator=g).clamp(-2.2, 2.2) * 0.9,
        skin=skin,
        lips=torch.lerp(natural, LIP_PAINTS[torch.randint(len(LIP_PAINTS), (n,), generator=g)], lip_paint[:, None]),
        lip_paint=lip_paint,
        hair=hair.clamp(0.02, 0.95),
        hair_volume=volume,
        hair_length=length,
        hairline=uniform(n, -0.024, 0.010, g),
        brow=(hair * 0.75 * uniform(n, 0.7, 1.1, g)[:, None]).clamp(0.02, 0.6),
        brow_amount=uniform(n, 0.35, 1.0, g),
        iris=iris,
        beard=torch.where(bearded, uniform(n, 0.25, 1.0, g), torch.zeros(n)),
        freckles=torch.where(torch.rand(n, generator=g) < 0.3, uniform(n, 0.2, 0.8, g), torch.zeros(n))
        * (1 - darkness),
        blush=uniform(n, 0.0, 0.7, g),
        eyeshadow=torch.where(painted & ~bearded, uniform(n, 0.2, 0.8, g), torch.zeros(n)),
        shine=uniform(n, 0.3, 1.0, g),
        creases=uniform(n, 0.45, 1.0, g),
        shirt=(SHIRTS[torch.randint(len(SHIRTS), (n,), generator=g)] * uniform(n, 0.8, 1.2, g)[:, None]).clamp(0, 1),
    )


# -------------------------------------------------------------------------------------------------------- expressions

PROTOTYPES: tuple[dict[str, float], ...] = (  # FACS prototypes of emotions (Ekman & Friesen) at their usual strength
    {"AU6": 3.5, "AU12": 4.0, "AU25": 2.5},  # joy, showing teeth
    {"AU6": 2.0, "AU12": 3.0},  # smile
    {"AU1": 4.0, "AU4": 2.5, "AU15": 3.5},  # sadness
    {"AU1": 4.0, "AU4": 2.0, "AU15": 3.0, "AU17": 3.0},  # about to cry
    {"AU1": 4.0, "AU2": 4.0, "AU5": 3.5, "AU25": 2.0, "AU26": 4.0},  # surprise
    {"AU1": 3.5, "AU2": 2.5, "AU4": 2.5, "AU5": 4.0, "AU20": 3.5, "AU25": 2.5},  # fear
    {"AU4": 4.0, "AU5": 2.5, "AU7": 3.5, "AU23": 3.5},  # anger
    {"AU4": 4.0, "AU7": 3.0, "AU10": 3.0, "AU25": 3.5},  # rage, showing teeth
    {"AU9": 4.0, "AU15": 2.0, "AU17": 2.5},  # disgust
    {"AU9": 3.0, "AU10": 4.0, "AU25": 2.5},  # disgust, lip raised
    {"AU12": 1.5, "AU14": 4.0},  # contempt
    {"AU43": 5.0},  # eyes closed
    {"AU25": 3.0, "AU26": 2.5},  # speaking
)
EXCLUDED = (
    ("AU5", "AU43"), ("AU7", "AU5"), ("AU23", "AU25"), ("AU23", "AU26"),
    ("AU12", "AU15"), ("AU17", "AU26"), ("AU20", "AU14"),
)  # fmt: skip
"""Pairs of AUs that exclude each other; the stronger one is kept (our choice, after the antagonists in FACS)."""


def sample_expressions(n: int, g: torch.Generator) -> Tensor:
    """(n, 17) AU intensities in [0, 5]: 8 % neutral, half prototypes at random strength, all with random single AUs."""
    position = {name: k for k, name in enumerate(AU_NAMES)}
    table = torch.zeros(len(PROTOTYPES), len(AU_NAMES))
    for row, prototype in enumerate(PROTOTYPES):
        for name, value in prototype.items():
            table[row, position[name]] = value
    kind = torch.rand(n, generator=g)
    base = table[torch.randint(len(PROTOTYPES), (n,), generator=g)] * uniform(n, 0.4, 1.25, g)[:, None]
    base = base * (1.0 + 0.2 * torch.randn(n, len(AU_NAMES), generator=g))
    base = torch.where((kind < 0.55)[:, None], base, torch.zeros(()))
    single = torch.rand(n, len(AU_NAMES), generator=g)
    share = torch.where(kind < 0.55, 0.07, 0.17)[:, None]  # more single AUs if there is no prototype
    extra = torch.where(single < share, uniform(n * len(AU_NAMES), 0.5, 5.0, g).view(n, -1), torch.zeros(()))
    au = torch.maximum(base, extra).clamp(0.0, MAX_INTENSITY)
    for first, second in EXCLUDED:
        i, j = position[first], position[second]
        weaker = torch.where(au[:, i] < au[:, j], i, j)
        clash = (au[:, i] > 0) & (au[:, j] > 0)
        au[clash, weaker[clash]] = 0.0
    au[kind > 0.92] = 0.0
    return torch.where(au < 0.25, torch.zeros(()), au)


# -------------------------------------------------------------------------------------------------------------- views


def sample_views(n: int, g: torch.Generator) -> Views:
    """n views: frontal to about 30 degrees, soft key light from the front half, smooth backdrops."""
    azimuth, elevation = uniform(n, -1.1, 1.1, g), uniform(n, -0.1, 0.9, g)
    light = torch.stack((azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()), 1)
    warmth = 0.12 * torch.randn(n, generator=g)
    color = torch.stack((1 + warmth, torch.ones(n), 1 - warmth), 1).clamp(0.7, 1.3)
    strength = uniform(n, 0.60, 1.0, g)[:, None]
    base = uniform(n * 3, 0.15, 0.85, g).view(n, 3, 1, 1)
    grey = base.mean(1, keepdim=True)
    backdrop = torch.lerp(grey.expand(n, 3, 1, 1), base, 0.55) + 0.12 * torch.randn(n, 1, 4, 4, generator=g)
    backdrop = backdrop + 0.04 * torch.randn(n, 3, 4, 4, generator=g)
    return Views(
        yaw=(13.0 * torch.randn(n, generator=g)).clamp(-32, 32),
        pitch=(6.0 * torch.randn(n, generator=g)).clamp(-15, 15),
        roll=(4.0 * torch.randn(n, generator=g)).clamp(-12, 12),
        zoom=uniform(n, 0.93, 1.10, g),
        shift=0.025 * torch.randn(n, 2, generator=g).clamp(-2, 2),
        gaze=torch.randn(n, 2, generator=g).clamp(-2, 2) * torch.tensor([9.0, 5.0]),
        light=light,
        light_color=color * strength,
        ambient=uniform(n, 0.24, 0.45, g)[:, None] * (1 + 0.05 * torch.randn(n, 3, generator=g)),
        background=backdrop.clamp(0.03, 0.97),
    )
