"""Do the commands warn of faces that the weights do not know? False alarms on renders, hits on everything else.

    python benchmarks/unfamiliar.py             # some minutes; needs the extra photographs
    python benchmarks/unfamiliar.py FOLDER      # photographs of your own too: they are measured, never shown

Each signal is divided by the value that 1 in 300 renders of one seed exceed; false alarms are counted on renders of
another seed, and the other kinds are made of some of these. Animals and tiny faces are there if scikit-image is
installed. Writes benchmarks/results/unfamiliar.json and .md, and prints `LIMITS` for expr_lib/measure/familiar.py: run
this again when the shipped weights change.
"""

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faces import machine
from photographs import PORTRAITS
from PIL import Image, ImageFilter, ImageOps

from expr_lib.apps.held_out import HELD_OUT_SEED
from expr_lib.datasets import to_float
from expr_lib.faces.plan import FacesConfig, plan_faces
from expr_lib.faces.render import load_renderer
from expr_lib.images import read_image, square
from expr_lib.importers.align import cut_out, find_faces
from expr_lib.measure.evaluate import write_results
from expr_lib.measure.familiar import LIMITS, SIGNALS, Unfamiliarity, load_unfamiliarity

SIZE, SEED, ALTERED = 128, 771, 40
RARE = 1 / 300
"""Share of the renders that exceed the limit of one signal, see the table for how many exceed any."""
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "blurred by 2 of 128 pixels": lambda face: face.filter(ImageFilter.GaussianBlur(2)),
    "blurred by 4 of 128 pixels": lambda face: face.filter(ImageFilter.GaussianBlur(4)),
    "as line drawings": lambda face: face.filter(ImageFilter.CONTOUR),
    "in four tones": lambda face: ImageOps.posterize(face, 2),
    "upside down": ImageOps.flip,
    "lying on the side": lambda face: face.transpose(Image.Transpose.ROTATE_90),
}


def renders(seed: int, n: int) -> list[np.ndarray]:
    """One face of each of `n` people, (SIZE, SIZE, 3) uint8."""
    plan, renderer = plan_faces(FacesConfig(n, 1, SIZE, seed=seed, val=0.0, test=1.0)), load_renderer()
    parts = np.array_split(np.arange(n), max(1, n // 20))
    return [image for part in parts for image in plan.render(renderer, part)[0].numpy()]


def covered(faces: list[np.ndarray]) -> list[np.ndarray]:
    """Faces with a square of one colour on a tenth of the image, at a random place near the middle."""
    rng, faces = np.random.default_rng(0), [face.copy() for face in faces]
    for face in faces:
        x, y = rng.integers(30, 60, 2)
        face[y : y + 40, x : x + 40] = rng.integers(0, 256, 3)
    return faces


def photographs(folder: Path | None) -> list[np.ndarray]:
    """The aligned faces of the public portraits and of those in a folder, all faces of each."""
    found = []
    for path in (*PORTRAITS, *(sorted(folder.iterdir()) if folder else [])):
        try:
            photo = read_image(path)
            for points in find_faces(photo):
                found.append(cut_out(photo, points, SIZE).face)
        except ValueError as error:
            print(f"{path.name}: left out: {error}")
    return found


def shipped() -> dict[str, list[np.ndarray]]:
    """Pictures that packages ship: scenes of scikit-learn, and a cat and tiny faces of scikit-image if it is there."""

    def folder(package: str) -> Path:
        return Path(str(importlib.util.find_spec(package).origin)).parent  # type: ignore[union-attr]

    scenes = [read_image(folder("sklearn") / f"datasets/images/{x}.jpg") for x in ("china", "flower")]
    kinds = {"a building and a flower (scikit-learn)": [square(scene, SIZE) for scene in scenes]}
    if importlib.util.find_spec("skimage"):
        cat = read_image(folder("skimage") / "data/chelsea.png")
        kinds["a cat, three crops (scikit-image)"] = [
            square(x, SIZE) for x in (cat, cat[20:260, 110:350], cat[60:220, 150:310])
        ]
        tiny = (255 * np.load(folder("skimage") / "data/lfw_subset.npy")[:ALTERED]).astype(np.uint8)  # (40, 25, 25)
        kinds["gray photographs of 25 pixels (scikit-image)"] = [
            np.array(Image.fromarray(x).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for x in tiny
        ]
    return kinds


def signals(measure: Unfamiliarity, images: list[np.ndarray]) -> np.ndarray:
    """(N, 3)"""
    parts = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).split(25)
    return torch.cat([measure.measure(to_float(part)) for part in parts]).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="photographs of your own, measured too")
    parser.add_argument("--renders", type=int, default=900, help="of each seed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    measure, rng = load_unfamiliarity(), np.random.default_rng(0)
    limits = np.quantile(signals(measure, renders(SEED, options.renders)), 1 - RARE, axis=0)
    fresh = renders(HELD_OUT_SEED, options.renders)
    some = [Image.fromarray(face) for face in fresh[:ALTERED]]
    kinds = {
        "renders of another seed": fresh, "photographs, aligned": photographs(options.folder), **shipped(),
        "renders, a tenth covered": covered(fresh[:ALTERED]),
        **{f"renders, {how}": [np.array(change(face)) for face in some] for how, change in CHANGES.items()},
        "noise": list(rng.integers(0, 256, (20, SIZE, SIZE, 3)).astype(np.uint8)),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for kind, images in kinds.items():
        share = signals(measure, images) / limits
        by = dict(zip(SIGNALS, (share > 1).mean(0).tolist(), strict=True))
        row = {"kind": kind, "pictures": len(images), "warned": float((share.max(1) > 1).mean())}
        rows.append({**row, "median": float(np.median(share.max(1))), "by": by})
        print(rows[-1], flush=True)
    found = dict(zip(SIGNALS, (float(f"{x:.3g}") for x in limits), strict=True))
    results = {
        "command": "python benchmarks/unfamiliar.py" + " FOLDER" * bool(options.folder),
        "machine": machine(), "renders": options.renders,
        "limits": found, "rows": rows,
    }  # fmt: skip
    write_results(options.out / "unfamiliar.json", results)
    (options.out / "unfamiliar.md").write_text(markdown(results))
    print(markdown(results))
    print(f"LIMITS = {found}" + ("" if found == LIMITS else "  # write this to expr_lib/measure/familiar.py"))


def markdown(results: dict[str, Any]) -> str:
    lines = [f"| pictures | n | warned | {' | '.join(f'by {name}' for name in SIGNALS)} | median |"]
    lines.append("|---|---:|---:|" + "---:|" * (len(SIGNALS) + 1))
    for row in results["rows"]:
        by = " | ".join(f"{row['by'][name]:.0%}" for name in SIGNALS)
        lines.append(f"| {row['kind']} | {row['pictures']} | {row['warned']:.1%} | {by} | {row['median']:.2f} |")
    lines += ["", f"Each signal is divided by its limit, which 1 in 300 of {results['renders']} other renders exceed; "
              "a picture is warned of if the largest exceeds 1. The median is that of the largest."]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
