"""What a rendered face is made of: people and ways of looking at them, as batches of numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

from torch import Tensor

Batch = TypeVar("Batch", bound="TensorBatch")


class TensorBatch:
    """A frozen dataclass of tensors with one leading length: indexable, movable."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]

    def __getitem__(self: Batch, index) -> Batch:
        return type(self)(**{f.name: getattr(self, f.name)[index] for f in fields(self)})  # type: ignore[arg-type]

    def to(self: Batch, *args) -> Batch:
        return type(self)(**{f.name: getattr(self, f.name).to(*args) for f in fields(self)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Subjects(TensorBatch):
    """n people: all that stays the same from image to image. Colours are sRGB in [0, 1], amounts in [0, 1]."""

    identity: Tensor  # (n, K) standard deviations
    skin: Tensor  # (n, 3)
    lips: Tensor  # (n, 3)
    lip_paint: Tensor  # (n,) 0 = bare lips .. 1 = lipstick
    hair: Tensor  # (n, 3)
    hair_volume: Tensor  # (n,) metres that the hair stands off the scalp
    hair_length: Tensor  # (n,) height above the origin (m) at which long hair is cut; > 0.5 = no long hair
    hairline: Tensor  # (n,) shift of the hairline in metres, positive = receding
    brow: Tensor  # (n, 3)
    brow_amount: Tensor  # (n,)
    iris: Tensor  # (n, 3)
    beard: Tensor  # (n,)
    freckles: Tensor  # (n,)
    blush: Tensor  # (n,)
    eyeshadow: Tensor  # (n,)
    shine: Tensor  # (n,)
    creases: Tensor  # (n,) how deep expression wrinkles get
    shirt: Tensor  # (n, 3)


@dataclass(frozen=True)
class Views(TensorBatch):
    """n ways of looking at a head: pose in degrees, framing, gaze, light, background."""

    yaw: Tensor  # (n,) positive = subject's face turns to its left
    pitch: Tensor  # (n,) positive = chin up
    roll: Tensor  # (n,)
    zoom: Tensor  # (n,) 1 = the face fills about two thirds of the width
    shift: Tensor  # (n, 2) of the image width
    gaze: Tensor  # (n, 2) degrees relative to the head: left, up
    light: Tensor  # (n, 3) unit vector towards the key light
    light_color: Tensor  # (n, 3) linear
    ambient: Tensor  # (n, 3) linear
    background: Tensor  # (n, 3, 4, 4) sRGB control points of a smooth backdrop
