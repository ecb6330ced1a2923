"""The rotation of a head: least squares between 68 landmarks and those of the rendered head."""

from __future__ import annotations

import numpy as np

POINTS = np.array([
    [-74, 35, 13], [-73, 15, 18], [-70, -3, 22], [-64, -22, 37], [-57, -40, 50], [-47, -56, 61], [-34, -69, 74],
    [-18, -79, 82], [0, -81, 87], [18, -79, 82], [34, -69, 74], [47, -56, 61], [57, -40, 50], [64, -22, 37],
    [70, -3, 22], [73, 15, 18], [74, 35, 13], [-58, 52, 76], [-48, 60, 87], [-36, 63, 96], [-23, 61, 101],
    [-11, 56, 103], [11, 56, 103], [23, 61, 101], [36, 63, 96], [48, 60, 87], [58, 52, 76], [0, 36, 100],
    [0, 23, 104], [0, 10, 111], [0, -3, 120], [-15, -12, 102], [-8, -14, 107], [0, -16, 109], [8, -14, 107],
    [15, -12, 102], [-45, 33, 85], [-36, 40, 93], [-26, 39, 93], [-18, 32, 89], [-27, 29, 91], [-37, 29, 90],
    [18, 32, 89], [26, 39, 93], [36, 40, 93], [45, 33, 85], [37, 29, 90], [27, 29, 91], [-24, -38, 96],
    [-16, -31, 106], [-7, -28, 110], [0, -30, 111], [7, -28, 110], [16, -31, 106], [24, -38, 96], [16, -46, 102],
    [7, -49, 105], [0, -50, 106], [-7, -49, 105], [-16, -46, 102], [-20, -38, 99], [-7, -36, 105], [0, -37, 106],
    [7, -36, 105], [20, -38, 99], [7, -38, 105], [0, -38, 106], [-7, -38, 105],
])  # fmt: skip
"""(68, 3) millimetres on the mean head at rest, x to image right, y up, z towards the camera; by tools/landmarks.py."""
INNER = slice(17, 68)
"""Brows, nose, eyes and mouth. Those of the jaw lie on the outline, which is another part of the head in each pose."""
STILL = np.array([*range(17), *range(27, 36), 36, 39, 42, 45])
"""Jaw, nose and corners of the eyes, which expressions hardly move.

By them a head that is turned looks turned less (45 degrees are read as 29), but two expressions of a rendered head in
one pose differ by 0.5 degrees in yaw and 1.4 in pitch (median; nine in ten by 2.2 and 4.2 at most). By `INNER` these
are 2.1 and 3.4 (10.5 and 9.6).
"""
ONE_PLACE = 17
"""A program that marks fewer than 68 points puts the others in one place; if more are there, they do not count."""
ROUNDS = 100
"""Largest number of iterations, which end when no number changes by more than 0.0001."""


def marked(points: np.ndarray) -> np.ndarray:
    """68 landmarks (68, 2) -> which of them, (68,) bool, are marked and not all put in one place."""
    _, place, times = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    return np.asarray(times[place.reshape(-1)] <= ONE_PLACE)


def rotation_of(points: np.ndarray, which: slice | np.ndarray = INNER) -> np.ndarray:
    """68 landmarks (68, 2), x to the right and y down, in any unit -> rotation (3, 3) of the head seen from afar.

    Scaled orthographic least squares by alternation: the depth of each landmark is that of the model as it is turned
    now, then the rotation is found in closed form (Kabsch 1976). Landmarks that are not `marked` are left out; if fewer
    than four are left, or if they lie on a line, there is no rotation: NaN.
    """
    known = marked(points)[which]
    seen = points[which][known]
    _, place = np.unique(seen, axis=0, return_inverse=True)
    same = place.reshape(-1)[:, None] == place.reshape(-1)  # landmarks in one place stand for their middle
    model = same @ POINTS[which][known] / same.sum(1, keepdims=True)
    if len(seen) < 4 or not np.ptp(seen, axis=0).min() > 0:
        return np.full((3, 3), np.nan)
    model, seen = model - model.mean(0), (seen - seen.mean(0)) * (1, -1)  # y up
    u, _, v = np.linalg.svd(np.linalg.lstsq(model, seen, rcond=None)[0].T, full_matrices=False)
    first, second = u @ v  # the rows of a rotation next to the affine least squares solution
    rotation = np.array([first, second, np.cross(first, second)])
    for _ in range(ROUNDS):
        turned = model @ rotation.T  # (51, 3)
        scale = np.square(seen).sum() / (seen * turned[:, :2]).sum()
        target = np.column_stack([seen / scale, turned[:, 2]])
        u, _, v = np.linalg.svd(target.T @ model)
        before, rotation = rotation, u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
        if np.abs(rotation - before).max() < 1e-4:
            break
    return rotation


def turn(points: np.ndarray, which: slice | np.ndarray = INNER) -> tuple[float, float]:
    """Landmarks (68, 2) -> yaw and pitch of the head in degrees, whatever its roll; 90 and 0 if they are none.

    Yaw > 0 turns it to its left and pitch > 0 lifts the chin: longitude and latitude of the camera, seen from the head.
    """
    x, y, z = rotation_of(points, which)[2]
    if np.isnan(x):
        return 90.0, 0.0
    return float(np.degrees(np.arctan2(-x, z))), float(np.degrees(np.arcsin(-y)))


def yaw(points: np.ndarray) -> float:
    """Landmarks (68, 2) -> how far the head turns to its left, in degrees, whatever its roll; 90 if they are none."""
    return turn(points)[0]
