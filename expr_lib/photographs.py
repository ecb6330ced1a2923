"""Swapping and editing faces in photographs, at the full size of the photograph.

A moving generator predicts the motion from a reduced copy of the face. The pixels of the photograph are then moved,
with one interpolation each and only inside the face. A drawing generator draws a small face, which is pasted back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from expr_lib.datasets import to_uint8
from expr_lib.importers.align import ONE, Aligned, align, face_box, face_weight, inverse, paste, places
from expr_lib.importers.choose import Choice
from expr_lib.model import MovingDG, Swapper, mix
from expr_lib.moving import AtRest, resize
from expr_lib.swap import expression, network_input, read_f_r

SEEN = 256
"""Side in pixels of the copy of a face from which the moving generator predicts the motion."""
STRIP = 1 << 18
"""Number of pixels that are moved at a time, which bounds the memory."""


def find(swapper: Swapper, photo: np.ndarray, choice: Choice = ONE) -> Aligned:
    """The face in a photograph (H, W, 3) uint8, cropped to the size that the swapper needs; errors as in `align`."""
    return align(photo, SEEN if isinstance(swapper.DG, MovingDG) else swapper.config.size, choice)


@torch.inference_mode()
def swap_photographs(
    swapper: Swapper, photos: Sequence[np.ndarray], faces: Sequence[Aligned], weights: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Two photographs (H, W, 3) uint8 with their faces -> each with the expression of the other face.

    `weights` (n,) in [0, 1] interpolate each AU, from the own expression to the other. Pixels outside the two faces are
    unchanged.
    """
    f_r = [read_f_r(swapper, face.face) for face in faces]
    a, b = (
        edit(swapper, photo, face, lambda own, other=other: mix(own, other, weights.to(own)))  # type: ignore[misc]
        for photo, face, other in zip(photos, faces, f_r[::-1], strict=True)
    )
    return a, b


def express_photograph(
    swapper: Swapper, photo: np.ndarray, face: Aligned, asked: dict[str, float], from_rest: bool = False
) -> np.ndarray:
    """A photograph (H, W, 3) uint8 with the intensities `asked` of some AUs, the others as in `express_images`."""
    return edit(swapper, photo, face, lambda own: expression(swapper, own, asked, from_rest))


def edit(swapper: Swapper, photo: np.ndarray, face: Aligned, change: Callable[[Tensor], Tensor]) -> np.ndarray:
    """A photograph (H, W, 3) uint8 in which the face has the expression `change(f_r)` instead of its f_r (1, n, d)."""
    own, give = editor(swapper, photo, face)
    return give(change(own))


@torch.inference_mode()
def editor(swapper: Swapper, photo: np.ndarray, face: Aligned) -> tuple[Tensor, Callable[[Tensor], np.ndarray]]:
    """f_r (1, n, d) of the face in a photograph, and a function that gives this face another f_r.

    The face is encoded once. The function returns the photograph (H, W, 3) uint8 with an expression (1, n, d).
    """
    image, dg = network_input(swapper, "face", face.face), swapper.DG
    features = swapper.E(resize(image, swapper.config.size))
    f_f, own = dg.disentangle(features, image)
    moved = dg.editor(f_f, features, image) if isinstance(dg, MovingDG) and isinstance(f_f, AtRest) else None

    @torch.inference_mode()
    def give(f_r: Tensor) -> np.ndarray:
        if moved is not None:
            return move(photo, face.matrix, moved(f_r))
        drawn = to_uint8(swapper.generate(f_f, f_r))[0].permute(1, 2, 0)  # (1, 3, S, S) -> (S, S, 3)
        return paste(photo, drawn.cpu().numpy(), face)

    return own, give


def move(photo: np.ndarray, matrix: np.ndarray, edits: Tensor) -> np.ndarray:
    """Apply the edits (1, 6, s, s) of `MovingDG.edit` for a face to its photograph (H, W, 3) uint8 -> (H, W, 3).

    `matrix` (2, 3) maps pixels of the photograph to shares of the face. Pixels that do not move and those outside the
    ellipse keep their exact values. The cost depends on the size of the face, not on that of the photograph.
    """
    rows, columns = face_box(matrix, photo.shape)
    done, width = photo.copy(), columns.stop - columns.start
    turn = torch.from_numpy(inverse(matrix)[:, :2] / 2).float()  # half sides of the face -> pixels of the photograph
    size = torch.tensor(photo.shape[1::-1])
    height = max(1, STRIP // max(1, width))
    for top in range(rows.start, rows.stop, height):
        strip = slice(top, min(rows.stop, top + height))
        place = places(matrix, strip, columns)
        weight = torch.from_numpy(face_weight(place))
        here = F.grid_sample(edits.cpu(), 2 * torch.from_numpy(place)[None] - 1, "bilinear", "border", False)[0]
        flow = here[:2].permute(1, 2, 0) @ turn.T  # (2, h, w) -> (h, w, 2), pixels
        y, x = (torch.arange(s.start, s.stop, dtype=torch.float32) for s in (strip, columns))
        source = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1) + flow  # (h, w, 2)
        seen = source[weight > 0]
        if not len(seen):
            continue
        low = torch.maximum(seen.amin(0).floor().long() - 2, torch.zeros(2, dtype=torch.long))
        high = torch.minimum(seen.amax(0).ceil().long() + 3, size)
        low, high = torch.minimum(low, size - 4).clamp(min=0), torch.maximum(high, low + 4)
        part = torch.from_numpy(photo[low[1] : high[1], low[0] : high[0]]).permute(2, 0, 1).float()  # (3, h', w')
        grid = (source - low + 0.5) / torch.tensor(part.shape[:0:-1]) * 2 - 1
        moved = F.grid_sample(part[None], grid[None], "bicubic", "border", False)[0]
        moved = (here[2:3] * moved + 127.5 * (here[3:] + 1 - here[2:3])).permute(1, 2, 0)  # (3, h, w) -> (h, w, 3)
        old = torch.from_numpy(photo[strip, columns])
        new = torch.lerp(old.float(), moved, weight[..., None])
        done[strip, columns] = new.round().clamp(0, 255).to(torch.uint8).numpy()
    return done
