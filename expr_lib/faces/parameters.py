"""The parameters of rendered faces, i.e. people and views, as batches of numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

from torch import Tensor

Batch = TypeVar("Batch", bound="TensorBatch")


class TensorBatch:
    """A frozen dataclass of tensors with the same first dimension, with indexing and `to`."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]

    def __getitem__(self: Batch, index) -> Batch:
        return type(self)(**{f.name: getattr(self, f.name)[index] for f in fields(self)})  # type: ignore[arg-type]

    def to(self: Batch, *args) -> Batch:
        return type(self)(**{f.name: getattr(self, f.name).to(*args) for f in fields(self)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Subjects(TensorBatch):
    """n people, as far as they are the same in all images. Colours are sRGB in [0, 1], amounts in [0, 1]."""

    identity: Tensor  # (n, K) standard deviations
    skin: Tensor  # (n, 3)
    lips: Tensor  # (n, 3)
    lip_paint: Tensor  # (n,) 0 = bare lips .. 1 = lipstick
    hair: Tensor  # (n, 3)
    hair_volume: Tensor  # (n,) distance from the scalp in metres
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
    creases: Tensor  # (n,) depth of expression wrinkles
    shirt: Tensor  # (n, 3)


@dataclass(frozen=True)
class Views(TensorBatch):
    """n views of a head: pose in degrees, framing, gaze, light, background."""

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
