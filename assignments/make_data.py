"""Make the tables that the assignments hand out, from real runs:  python assignments/make_data.py runs/faces-64

`leak_curves.csv` (assignment 1): four small autoencoders learn on the rendered faces (`expr-lib faces`), with and
without an adversary on their code, and again and again a fresh probe reads action units from the code. About ten
minutes on two cores.

`swaps.csv` (assignment 3): what the judges measure on swaps of the shipped checkpoint, whole and half, and of two
answers that only hand back one of the two faces, slightly blurred and brightened. About a minute.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expr_lib import FIRST
from expr_lib.datasets import FaceData, to_float
from expr_lib.faces.plan import FacesConfig, plan_faces
from expr_lib.faces.render import load_renderer
from expr_lib.facs import AU_NAMES
from expr_lib.losses import class_confusion_loss, class_discriminator_loss, class_weights
from expr_lib.measure.judges import load_judges
from expr_lib.measure.metrics import leak_au, masked_l1, ssim
from expr_lib.model import D_f, ModelConfig, Residual, au_classes, conv_bn, mix
from expr_lib.step import frozen
from expr_lib.swap import load

HERE = Path(__file__).parent
SEEN = ("AU12", "AU25", "AU26", "AU43")  # those that 32 pixels show best
STEPS, EVERY, BATCH = 900, 100, 64
SMALL = ModelConfig(size=32, n_aus=len(SEEN), levels=(2,))
RUNS = {  # weight of the adversary, steps between two updates of D, is f_f detached for D?
    "A": (2.0, 60, True),  # D is left behind: E fools this one D, nobody else
    "B": (0.0, 1, True),  # no adversary
    "C": (2.0, 1, True),  # as it should be
    "D": (0.0, 1, False),  # the detach is forgotten: D teaches E to tell
}
Faces = tuple[Tensor, Tensor]  # images (N, 3, 32, 32), AUs (N, 4)


def faces_of(data: FaceData) -> Faces:
    x = F.avg_pool2d(to_float(data.pixels(np.arange(len(data)))), 2)  # (N, 3, 64, 64) -> (N, 3, 32, 32)
    x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
    return x, torch.from_numpy(data.au[:, [data.au_names.index(name) for name in SEEN]])


def reads(D: nn.Module, f_f: Tensor, au: Tensor) -> float:
    """Balanced accuracy of D, 0.5 to 1."""
    D.eval()
    with torch.no_grad():
        found = float(leak_au(D(f_f).argmax(-1).double(), au))
    D.train()
    return found


def learn_to_tell(D: nn.Module, opt: torch.optim.Optimizer, f_f: Tensor, cls: Tensor, weight: Tensor) -> None:
    opt.zero_grad()
    class_discriminator_loss(D(f_f), cls, weight).backward()
    opt.step()


def fresh_probe(f_f: Tensor, cls: Tensor, weight: Tensor, f_f_test: Tensor, au_test: Tensor) -> float:
    """A new D on the frozen code of the training images, measured on people it has not met."""
    torch.manual_seed(1)
    D = D_f(SMALL)
    opt = torch.optim.Adam(D.parameters(), 1e-3)
    for _ in range(200):
        rows = torch.randint(len(f_f), (BATCH,))
        learn_to_tell(D, opt, f_f[rows], cls[rows], weight)
    return reads(D, f_f_test, au_test)


def curve(data: Faces, test: Faces, adversary: float, d_every: int, detach: bool) -> list[tuple[int, float, float]]:
    """One run -> (step, balanced accuracy of its own D, of a fresh probe), both on people not trained on."""
    torch.manual_seed(0)
    x_all, cls_all = data[0], au_classes(data[1], (2,))
    weight = class_weights(cls_all, 2)
    E = nn.Sequential(nn.PixelUnshuffle(4), conv_bn(48, 64), Residual(64), nn.Conv2d(64, 16, 1))
    G = nn.Sequential(conv_bn(16, 64), Residual(64), nn.Conv2d(64, 48, 1), nn.PixelShuffle(4))
    D = D_f(SMALL)
    opt_E = torch.optim.Adam([*E.parameters(), *G.parameters()], 2e-3, betas=(0.5, 0.99))
    opt_D = torch.optim.Adam(D.parameters() if detach else [*D.parameters(), *E.parameters()], 1e-3, betas=(0.5, 0.99))
    points = []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            state = torch.get_rng_state()
            with torch.no_grad():
                f_f, f_f_test = E.eval()(x_all), E(test[0])
            E.train()
            points.append((step, reads(D, f_f_test, test[1]), fresh_probe(f_f, cls_all, weight, f_f_test, test[1])))
            torch.set_rng_state(state)
            print(adversary, d_every, detach, *points[-1], flush=True)
        rows = torch.randint(len(x_all), (BATCH,))
        x, cls = x_all[rows], cls_all[rows]
        f_f = E(x)
        with frozen(D):
            loss = 20 * F.l1_loss(G(f_f), x) + adversary * class_confusion_loss(D(f_f), cls, weight)
        opt_E.zero_grad()
        loss.backward()
        opt_E.step()
        if step % d_every == 0:
            for _ in range(2):
                f_f = E(x)
                learn_to_tell(D, opt_D, f_f.detach() if detach else f_f, cls, weight)
    return points


def leak_curves(faces: Path) -> None:
    data = FaceData.open(faces)
    learn, test = faces_of(data.subset("train")[:4000]), faces_of(data.subset("val")[:800])
    rows = [(run, *point) for run, how in RUNS.items() for point in curve(learn, test, *how)]
    table = pd.DataFrame(rows, columns=["run", "step", "adversary", "probe"]).round(4)
    table.to_csv(HERE / "source" / "1_adversary" / "leak_curves.csv", index=False)


# ------------------------------------------------------------------------------------------------ assignment 3


ASKED = ("AU1", "AU4", "AU12", "AU25", "AU26", "AU43")


@torch.no_grad()
def measured_swaps() -> None:
    plan = plan_faces(FacesConfig(n_subjects=24, images_per_subject=8, size=64, seed=31, val=0.0, test=1.0))
    swapper, renderer, judges = load(FIRST), load_renderer(), load_judges()
    rng = np.random.default_rng(0)
    a = np.arange(0, len(plan), 2)  # four images of each person
    b = (a + 8 * rng.integers(1, 24, len(a)) + rng.integers(0, 8, len(a))) % len(plan)
    b = np.where(plan.subject[b] == plan.subject[a], (b + 8) % len(plan), b)

    def render(au_rows: np.ndarray) -> tuple[Tensor, Tensor]:
        pixels, mask = plan.render(renderer, a, au_rows=au_rows)
        return to_float(pixels).permute(0, 3, 1, 2), mask  # (N, 3, 64, 64), (N, 64, 64)

    (image_a, _), (truth, mask) = render(a), render(b)
    image_b = to_float(plan.render(renderer, b)[0]).permute(0, 3, 1, 2)

    def disguise(x: Tensor) -> Tensor:
        return (torch.lerp(x, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), 0.3) + 0.02).clamp(-1, 1)

    def swap(x: Tensor, other: Tensor, amount: float) -> Tensor:
        (f_f, own), (_, f_r) = swapper.encode(x), swapper.encode(other)
        return swapper.generate(f_f, mix(own, f_r, torch.full((own.shape[1],), amount)))

    answers = {  # the swap, the self-reconstruction of a, that of the truth
        "A": (disguise(image_b), disguise(image_a), disguise(truth)),
        "B": (swap(image_a, image_b, 1.0), swap(image_a, image_a, 1.0), swap(truth, truth, 1.0)),
        "C": (disguise(image_a), disguise(image_a), disguise(truth)),
        "D": (swap(image_a, image_b, 0.5), swap(image_a, image_a, 1.0), swap(truth, truth, 1.0)),
    }
    tables = []
    for model, (swapped, self_, true_self) in answers.items():
        columns = {"model": model, "person": plan.subject[a].numpy()}
        columns |= {f"true {name}": plan.au[b, AU_NAMES.index(name)] for name in ASKED}
        columns |= {f"own {name}": plan.au[a, AU_NAMES.index(name)] for name in ASKED}
        read = judges.au(swapped)
        columns |= {f"judged {name}": read[:, AU_NAMES.index(name)] for name in ASKED}
        columns |= {
            f"d_{k}": masked_l1(x, truth, mask)
            for k, x in zip(("swap", "self", "truth"), (swapped, self_, true_self), strict=True)
        }
        columns["ssim"] = ssim(swapped, truth)
        columns["cosine"] = (judges.identity(swapped) * judges.identity(image_a)).sum(1)
        tables.append(pd.DataFrame(columns))
    pd.concat(tables).round(4).to_csv(HERE / "source" / "3_measuring" / "swaps.csv", index=False)


if __name__ == "__main__":
    measured_swaps()
    leak_curves(Path(sys.argv[1]))
