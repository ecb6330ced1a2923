"""A second, independent identity judge: dlib's face recognizer, which was trained on photographs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from expr_lib.datasets import FaceData, to_uint8
from expr_lib.importers.align import dlib_model
from expr_lib.measure.judges import acceptance


@dataclass(frozen=True)
class DlibJudge:
    """dlib's face recognizer: image (B, 3, H, W) in [-1, 1] -> embedding (B, 128) of unit length, as `IdentityJudge`.

    It was trained on three million photographs, independently of this project. Needs the extra `photographs`. Images
    are enlarged to 256 pixels; the position of the face is that of our framing, so no face is missed. At 1 % false
    accepts, it recognizes a rendered person in a quarter of the pairs of images only (`ceilings`), at 64 pixels and
    at 128, so compare its results with those for the true render.
    Source: King, *High Quality Face Recognition with Deep Metric Learning*, dlib.net, 2017 (a ResNet of 29 layers).
    """

    landmarks: Any  # dlib.shape_predictor
    network: Any  # dlib.face_recognition_model_v1
    threshold: float = 0.0
    ceilings: dict[str, float] = field(default_factory=dict)

    def __call__(self, image: Tensor) -> Tensor:
        import dlib

        large = F.interpolate(image.cpu(), size=(256, 256), mode="bicubic", align_corners=False)
        box = dlib.rectangle(33, 38, 220, 225)  # result of dlib's detector for a frontal render
        chips = [
            dlib.get_face_chip(face, self.landmarks(face, box), size=150, padding=0.25)
            for face in to_uint8(large).permute(0, 2, 3, 1).contiguous().numpy()  # (256, 256, 3) each
        ]
        embedding = torch.tensor(np.array(self.network.compute_face_descriptor(chips)), dtype=torch.float32)  # (B, 128)
        return F.normalize(embedding, dim=1).to(image.device)


def dlib_judge(faces: FaceData) -> DlibJudge:
    """dlib's recognizer with a threshold set on every second person of `faces` and ceilings from the others.

    dlib's own threshold is for photographs and would accept almost all rendered faces. Raises `ImportError` without
    the extra.
    """
    landmarks = dlib_model("shape_predictor_68_face_landmarks.dat")
    network = dlib_model("dlib_face_recognition_resnet_model_v1.dat")
    import dlib

    judge = DlibJudge(dlib.shape_predictor(landmarks), dlib.face_recognition_model_v1(network))
    people = np.unique(faces.subject)
    first, second = (faces[np.isin(faces.subject, people[k::2])] for k in (0, 1))
    threshold, ceilings = acceptance(judge, first, second)
    return replace(judge, threshold=threshold, ceilings=ceilings)
