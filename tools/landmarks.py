"""Find the 68 landmarks on the head model, and print `expr_lib.importers.pose.POINTS`.

    python tools/landmarks.py        # a minute; needs the extra photographs

dlib finds the landmarks on rendered heads at rest with a yaw of at most 15 degrees. Each is transferred to the mean
head by the triangle at its position. The result is the median over the renders, averaged over left and right.
"""

from __future__ import annotations

import numpy as np
import torch

from expr_lib.faces.plan import FacesConfig, plan_faces
from expr_lib.faces.render import load_renderer, rasterize, rotation
from expr_lib.importers.align import dlib_model

SIZE, PEOPLE = 256, 300
PAIRS = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46]
PAIRS += [39, 38, 37, 36, 41, 40, *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1)]
"""Number of the mirror image of each landmark."""


def main() -> None:
    import dlib

    predict = dlib.shape_predictor(dlib_model("shape_predictor_68_face_landmarks.dat"))
    box = dlib.rectangle(33, 38, 220, 225)  # the box that dlib's detector finds for a frontal render
    plan, renderer = plan_faces(FacesConfig(PEOPLE, 1, SIZE, seed=68)), load_renderer()
    head, found = renderer.head, []
    views = plan.views
    views.yaw.clamp_(-15, 15)
    for k in range(PEOPLE):
        rows, rest = torch.tensor([k]), torch.zeros(1, len(plan.au[0]))
        subject, view = plan.subjects[rows], views[rows]
        image, _ = renderer(subject, rest, view, SIZE)
        shape = predict((image[0].permute(1, 2, 0) * 255).byte().numpy(), box)
        world = head(subject.identity, rest) @ rotation(view.yaw, view.pitch, view.roll).mT  # (1, V, 3)
        pixel, triangle, weights = rasterize(renderer.project(world, view, SIZE), head.triangles, SIZE)
        marks = torch.tensor([[part.x, part.y] for part in shape.parts()])  # (68, 2)
        places = torch.stack([pixel % SIZE, pixel // SIZE], 1)  # (M, 2)
        skin = head.part[triangle] == head.parts.index("skin")
        hit = ((marks[:, None] - places).square().sum(2) + 10**6 * ~skin).argmin(1)  # (68,) the nearest skin pixel
        corners = head.mean[head.triangles[triangle[hit]]]  # (68, 3, 3)
        found.append((corners * weights[:, hit].T[..., None]).sum(1))
    points = torch.stack(found).median(0).values * 1000  # (68, 3) in millimetres
    points = (points + points[PAIRS] * points.new_tensor([-1, 1, 1])) / 2
    print(np.array2string(points.round().int().numpy(), separator=", "))


if __name__ == "__main__":
    main()
