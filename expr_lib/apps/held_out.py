"""The held-out people of demo, evaluation and figures, and judges that were not trained on them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expr_lib.errors import InputError

if TYPE_CHECKING:
    from expr_lib.blocks import ModelConfig
    from expr_lib.faces.plan import FacePlan
    from expr_lib.faces.render import Renderer
    from expr_lib.measure.dlib_judge import DlibJudge
    from expr_lib.measure.judges import Judges

HELD_OUT_SEED = 4610
"""Seed of the held-out faces; no training set of a swapper or of judges may have it."""


def measured_size(config: "ModelConfig") -> int:
    """Side in pixels at which a swapper is measured by default: 64, the size of the judges, if it takes any size."""
    return 64 if config.generator == "moved" else config.size


def held_out_faces(size: int, seed: int = HELD_OUT_SEED) -> "FacePlan":
    """100 held-out people with ten expressions each, in images of `size` pixels a side."""
    from expr_lib.faces.plan import FacesConfig, plan_faces

    return plan_faces(FacesConfig(n_subjects=100, images_per_subject=10, size=size, seed=seed, val=0.0, test=1.0))


def second_judge(size: int, renderer: "Renderer") -> "DlibJudge":
    """dlib's recognizer, with a threshold for rendered faces of `size` pixels, set on people used nowhere else."""
    import numpy as np

    from expr_lib.datasets import FaceData
    from expr_lib.faces.plan import FacesConfig, plan_faces
    from expr_lib.facs import AU_NAMES
    from expr_lib.measure.dlib_judge import dlib_judge
    from expr_lib.measure.probes import PROBE_SEED

    plan = plan_faces(FacesConfig(80, 5, size=size, seed=PROBE_SEED, val=0.0, test=0.0))
    chunks = np.array_split(np.arange(len(plan)), 10)
    images = np.concatenate([plan.render(renderer, rows)[0].cpu().numpy() for rows in chunks])
    judge = dlib_judge(FaceData(images, plan.subject.numpy(), plan.split, plan.au.numpy(), AU_NAMES, {}))
    print(f"dlib on true renders of {size} px: " + ", ".join(f"{k} {v:.3f}" for k, v in judge.ceilings.items()))
    return judge


def say_if_unfamiliar(about: dict[str, Any], names: Sequence[Path], faces: Any) -> None:
    """Print a line on stderr for each image (S, S, 3) that is far from the rendered faces of the training.

    `about` is the metadata of the checkpoint. Checkpoints that were trained on imported faces give no line.
    """
    import torch

    from expr_lib.datasets import to_float
    from expr_lib.measure.familiar import SIGNALS, load_unfamiliarity

    if str(about.get("data", {}).get("generator", "")).startswith("import"):
        return  # the limits hold for rendered faces only
    images = to_float(torch.from_numpy(faces)).permute(0, 3, 1, 2)  # (B, S, S, 3) -> (B, 3, S, S)
    for name, share, signal in zip(names, *load_unfamiliarity()(images), strict=True):
        if share > 1:
            print(
                f"expr-lib: {name} is unlike the faces of the training: {SIGNALS[signal]} "
                f"({share:.2f}; 99 of 100 rendered faces are below 1.00)",
                file=sys.stderr,
            )


def unmet_judges(name: str, about: dict[str, Any], seed: int = HELD_OUT_SEED, device: str = "cpu") -> "Judges":
    """The shipped judges; `InputError` if they or the checkpoint were trained on faces with this seed.

    `name` and `about` are the name and the metadata of the checkpoint.
    """
    from expr_lib.measure.judges import load_judges
    from expr_lib.measure.probes import PROBE_SEED

    def check(who: str, data: dict[str, Any]) -> None:
        if data.get("config", {}).get("seed") == seed:
            raise InputError(f"--seed {seed}: {who} was trained on these people; expected another seed")

    check(name, about.get("data", {}))
    check("the probe of f_f", {"config": {"seed": PROBE_SEED}})
    judges = load_judges(device)
    for judge in judges:
        check(type(judge).__name__, judge.metadata.get("data", {}))
    return judges
