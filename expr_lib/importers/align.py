"""Photographs: find the face, rotate and scale it to the frame of the rendered faces, and paste a face back.

Only finding faces needs the extra `photographs` (dlib and its model of 68 landmarks); with landmarks from another
source, the rest works without it. The model was trained on 300-W, whose licence excludes commercial use.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from expr_lib.errors import InputError
from expr_lib.importers.choose import Choice, chosen
from expr_lib.importers.pose import STILL, marked, turn, yaw

CANONICAL = np.array([[0.3467, 0.3769], [0.6533, 0.3769], [0.3763, 0.7422], [0.6237, 0.7422]])
"""Eyes and mouth corners of the frontal mean rendered head as shares of the image; the left of the image first."""
MAX_YAW = 37.0
"""Largest yaw in degrees. The rendered heads turn by up to 32 degrees; `benchmarks/photographs.py` measures the error
of the yaw."""
MAX_BESIDE = 0.25
"""Largest share of the ellipse `FACE` beside the face, since background or hair there would move with the face."""
CERTAIN = 0.3
"""Score of dlib's detector below which a find does not count; at its own 0 it takes a badge on a suit for a face."""
SIDEWAYS, CERTAIN_SIDEWAYS = (1, 2), 0.45
"""Parts of dlib's detector that find turned heads, and the score below which their finds do not count.

On heads turned by 45 degrees and more dlib then marks a face that looks straight ahead. No rendered head seen from the
front is lost.
"""
FACE = ((0.5, 0.56), (0.40, 0.42))
"""Centre and half axes of the ellipse that is pasted back, in shares of the aligned image."""
ONE = Choice()
"""The default, without a choice among several faces."""
INVENTED = 1 / 3
"""Largest share of the ellipse `FACE` outside the photograph, where the pixels at its edge are repeated."""


class LandmarkError(InputError):
    """Landmarks that do not form a face, or do not belong to this photograph."""


@dataclass(frozen=True)
class Aligned:
    """A face cropped from a photograph, with the transform between the two."""

    face: np.ndarray  # (S, S, 3) uint8
    points: np.ndarray  # (68, 2) landmarks in pixels of the photograph
    matrix: np.ndarray  # (2, 3) pixels of the photograph -> shares of the face image
    turn: tuple[float, float] = (math.nan, math.nan)  # yaw and pitch in degrees, to compare images of one person


def align(photo: np.ndarray, size: int, choice: Choice = ONE) -> Aligned:
    """Find the face in a photograph (H, W, 3) uint8 and crop it to `size` pixels a side.

    Of several faces, `choice` decides; by default the largest is taken if it has four times the area of the next.
    Raises `ImportError` without the extra `photographs`, `InputError` if there is no face, if there are several,
    or if the head is turned too far.
    """
    found = find_faces(photo)
    if not found:
        raise InputError("found no face; expected one seen from the front, upright, at least 40 pixels wide")
    return cut_out(photo, chosen(found, choice), size)


def cut_out(photo: np.ndarray, points: np.ndarray, size: int) -> Aligned:
    """Crop the face with these landmarks (68, 2) to `size` pixels a side.

    Raises `InputError` for a head that is turned too far, and `LandmarkError` for landmarks that do not fit.
    """
    points = np.asarray(points, np.float64)
    if points.shape != (68, 2) or not np.isfinite(points).all():
        raise LandmarkError(f"landmarks: found shape {points.shape}, expected 68 pairs of finite numbers")
    expect_inside(anchors(points), photo.shape[:2])
    if abs(turned := yaw(points)) > MAX_YAW:
        raise InputError(f"found a head turned by {abs(turned):.0f} degrees, expected {MAX_YAW:.0f} at most")
    matrix = similarity(anchors(points))
    if (share := beside_face(matrix, points)) > MAX_BESIDE:
        raise InputError(f"found {share:.0%} of the changed area beside the face, expected {MAX_BESIDE:.0%} at most")
    if (share := beyond(matrix, photo.shape[:2])) > INVENTED:
        found = f"found {share:.0%} of the face beyond the photograph, expected {INVENTED:.0%} at most"
        raise LandmarkError(f"landmarks: {found}; is this a scaled or cut copy?")
    return Aligned(crop(photo, matrix, size), points, matrix, turn(points, STILL))


def expect_inside(points: np.ndarray, shape: tuple[int, ...]) -> None:
    """`LandmarkError` if eyes or mouth (4, 2) lie outside a photograph of this (height, width)."""
    for what, low, high, side in zip(("columns", "rows"), points.min(0), points.max(0), shape[1::-1], strict=True):
        if low < 0 or high > side:
            found = f"found eyes and mouth in {what} {low:.0f} to {high:.0f} of {side}"
            raise LandmarkError(f"landmarks: {found}, expected them inside; is this a scaled or cut copy?")


def beyond(matrix: np.ndarray, shape: tuple[int, ...]) -> float:
    """Share of the ellipse `FACE` that lies outside a photograph of this (height, width)."""
    rows, columns = (face_mask(32) > 0).nonzero()
    back = inverse(matrix)
    place = (np.stack([columns, rows], 1) + 0.5) / 32 @ back[:, :2].T + back[:, 2]  # (N, 2) in the photograph
    return float(((place < 0) | (place > (shape[1], shape[0]))).any(1).mean())


def beside_face(matrix: np.ndarray, points: np.ndarray) -> float:
    """Share of the ellipse `FACE`, weighted as it is pasted, that lies beside the face of these landmarks.

    It is 0 if the landmarks do not say where the outline is.
    """
    brows = points[17:27]
    if not marked(points)[:27].all():
        return 0.0
    forehead = brows + 0.9 * (brows.mean(0) - points[33])  # as high as from the brows to below the nose
    outline = np.concatenate([points[:17], forehead[::-1]]) @ matrix[:, :2].T + matrix[:, 2]
    inside, weight = Image.new("1", (64, 64)), face_mask(64)
    ImageDraw.Draw(inside).polygon([tuple(place) for place in outline * 64 - 0.5], fill=1)
    return float(weight[~np.array(inside)].sum() / weight.sum())


def find_faces(photo: np.ndarray) -> list[np.ndarray]:
    """Landmarks (68, 2) of each upright face in (H, W, 3) uint8; large photographs are first reduced to 1200 pixels."""
    detect, predict = _models()
    scale = min(1.0, 1200 / max(photo.shape[:2]))
    size = (round(photo.shape[1] * scale), round(photo.shape[0] * scale))
    small = np.array(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)) if scale < 1 else photo
    found = zip(*detect.run(small, 1, CERTAIN), strict=True)  # 1: doubled first, for faces of 40 pixels
    shapes = [predict(small, box) for box, score, part in found if part not in SIDEWAYS or score >= CERTAIN_SIDEWAYS]
    return [np.array([[p.x, p.y] for p in shape.parts()], np.float64) / scale for shape in shapes]


@cache
def _models() -> tuple[Any, Any]:
    path = dlib_model("shape_predictor_68_face_landmarks.dat")
    import dlib

    return dlib.get_frontal_face_detector(), dlib.shape_predictor(path)


def dlib_model(name: str) -> str:
    """Path of a model of the extra `photographs`; `ImportError` if the extra is not installed."""
    # the package of the models is never imported: importing it fails with new setuptools
    package = importlib.util.find_spec("face_recognition_models")
    if package is None or package.origin is None or importlib.util.find_spec("dlib") is None:
        raise ImportError('finding faces needs dlib: pip install "expr-lib[photographs]"')
    return str(Path(package.origin).parent / "models" / name)


# -- geometry ------------------------------------------------------------------------------------------------------


def anchors(points: np.ndarray) -> np.ndarray:
    """68 landmarks -> the four points (4, 2) that are aligned, eyes and mouth corners; the left of the image first."""
    return np.stack([points[36:42].mean(0), points[42:48].mean(0), points[48], points[54]])


def similarity(four: np.ndarray) -> np.ndarray:
    """Least squares rotation, scale and shift (2, 3) that maps four points (4, 2) to `CANONICAL`.

    Source: Umeyama, *Least-squares estimation of transformation parameters*, TPAMI 1991, in complex numbers.
    """
    z, w = (p[:, 0] + 1j * p[:, 1] for p in (np.asarray(four, np.float64), CANONICAL))
    dz, dw = z - z.mean(), w - w.mean()
    turn = (dz.conj() @ dw) / (dz.conj() @ dz).real  # scale and angle in one
    shift = w.mean() - turn * z.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of an affine map: (2, 3) -> (2, 3)."""
    return np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]


def magnification(matrix: np.ndarray, size: int) -> float:
    """Pixels of a crop of `size` pixels for each pixel of the photograph."""
    return float(np.hypot(matrix[0, 0], matrix[1, 0])) * size


def crop(photo: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """The part of a photograph (H, W, 3) in the frame of `matrix`, scaled to (size, size, 3) without aliasing.

    Outside the photograph, the pixels at its edge are repeated.
    """
    scale, back = magnification(matrix, size), inverse(matrix)
    corners = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]]) @ back.T  # (4, 2) in the photograph
    low, high = np.floor(corners.min(0)).astype(int) - 2, np.ceil(corners.max(0)).astype(int) + 3
    height, width = photo.shape[:2]
    rows, columns = np.arange(low[1], high[1]).clip(0, height - 1), np.arange(low[0], high[0]).clip(0, width - 1)
    part = Image.fromarray(photo[rows[:, None], columns])
    if scale < 1:  # reduced by averaging before it is rotated
        part = part.resize(
            (max(1, round(part.width * scale)), max(1, round(part.height * scale))), Image.Resampling.LANCZOS
        )
    stretch = np.array([part.width / len(columns), part.height / len(rows)])
    # pixel of the crop -> share -> photograph -> part; Pillow samples at the centre of each pixel
    map_ = np.hstack([back[:, :2] / size, back[:, 2:]])
    map_[:, 2] -= low
    map_ *= stretch[:, None]
    form = ((size, size), Image.Transform.AFFINE, map_.flatten().tolist(), Image.Resampling.BICUBIC)
    channels = (Image.fromarray(channel) for channel in np.array(part, np.float32).transpose(2, 0, 1))
    # in float and one channel at a time, since Pillow would truncate the fractions of bytes
    turned = np.stack([np.array(channel.transform(*form)) for channel in channels], -1)
    return turned.round().clip(0, 255).astype(np.uint8)


def face_weight(place: np.ndarray) -> np.ndarray:
    """Places (..., 2) in shares of the aligned image -> (...): 1 on the face, falling to 0 at the ellipse `FACE`."""
    centre, half = np.array(FACE, place.dtype)
    radius = np.hypot(*np.moveaxis((place - centre) / half, -1, 0))
    t = ((1 - radius) / 0.25).clip(0, 1)
    return t * t * (3 - 2 * t)


def face_mask(size: int) -> np.ndarray:
    """`face_weight` of all pixels of an aligned image, (size, size) in [0, 1]."""
    place = (np.arange(size) + 0.5) / size
    return face_weight(np.stack(np.meshgrid(place, place), -1))


def face_box(matrix: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of a photograph (height, width) that contain the ellipse `FACE`, where pixels may change."""
    back, (centre, half) = inverse(matrix), np.array(FACE)
    x, y = back[:, :2] @ centre + back[:, 2]
    dx, dy = np.hypot(*(back[:, :2] * half).T)  # half the extent of the rotated ellipse
    low, high = np.floor([y - dy, x - dx]).astype(int), np.ceil([y + dy, x + dx]).astype(int)
    rows, columns = (slice(max(0, a), max(0, min(b, n))) for a, b, n in zip(low, high, shape[:2], strict=True))
    return rows, columns


def places(matrix: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Pixel centres of a photograph in these rows and columns, (h, w, 2) float32 in shares of the aligned image."""
    y, x = (np.arange(s.start, s.stop) + 0.5 for s in (rows, columns))
    place = x[None, :, None] * matrix[:, 0] + y[:, None, None] * matrix[:, 1] + matrix[:, 2]  # (h, w, 2)
    return place.astype(np.float32)


def match_color(face: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Give a face the mean and spread of each colour channel of `like`, inside the mask; both (S, S, 3) uint8."""
    weight = face_mask(len(face))[..., None]
    weight = weight / weight.sum()

    def moments(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = (weight * image).sum((0, 1))
        return mean, np.sqrt((weight * (image - mean) ** 2).sum((0, 1)))

    (mean, spread), (goal, goal_spread) = moments(face.astype(float)), moments(like.astype(float))
    matched = (face - mean) * (goal_spread / spread.clip(1)).clip(0.5, 2) + goal
    return matched.round().clip(0, 255).astype(np.uint8)


def paste(photo: np.ndarray, face: np.ndarray, aligned: Aligned) -> np.ndarray:
    """Put a face (S, S, 3), such as a swap of `aligned.face`, back into the photograph, colours matched -> (H, W, 3).

    Only pixels in the ellipse `FACE` change, with a soft edge.
    """
    size, matrix = len(face), aligned.matrix
    face = match_color(face, aligned.face if len(aligned.face) == size else crop(photo, matrix, size))
    rows, columns = face_box(matrix, photo.shape)
    to_face = matrix.copy()
    to_face[:, 2] += matrix[:, :2] @ (columns.start, rows.start)
    shrinks = magnification(matrix, size)
    picture = Image.fromarray(face)
    if shrinks > 1:  # the face has more pixels than its place in the photograph
        picture = picture.filter(ImageFilter.GaussianBlur(0.5 * (shrinks - 1)))
    box = (columns.stop - columns.start, rows.stop - rows.start)
    form = (Image.Transform.AFFINE, (to_face * size).flatten().tolist(), Image.Resampling.BICUBIC)
    layer = np.array(picture.transform(box, *form), np.float32)
    weight = face_weight(places(matrix, rows, columns))[..., None]
    done = photo.copy()
    done[rows, columns] = (photo[rows, columns] * (1 - weight) + layer * weight).round().astype(np.uint8)
    return done
