"""What happens to photographs? Identity, sharpness, cost and the pose, each measured.

    python benchmarks/photographs.py                  # some minutes; needs the extra photographs
    python benchmarks/photographs.py FOLDER           # photographs of your own too: they are measured, never shown

Two portraits in the public domain, one of this repository and one that matplotlib ships, are swapped with each other
and with rendered faces, and given expressions by numbers. There is no true answer, so this measures what can be: the
distance that dlib's recognizer sees to the input (usual threshold of one person: 0.6), the sharpness inside the face
(variance of the Laplacian, as a share of the input's), and the pixels outside the face that changed. Writes
benchmarks/results/photographs.json, .md and .png.
"""

import argparse
import multiprocessing
import resource
import time
from functools import partial
from pathlib import Path
from typing import Any

import dlib
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from faces import machine
from PIL import Image

from expr_lib.apps.held_out import HELD_OUT_SEED
from expr_lib.datasets import NEAR
from expr_lib.faces.plan import FacesConfig, plan_faces
from expr_lib.faces.render import load_renderer
from expr_lib.images import read_image
from expr_lib.importers.align import (
    MAX_YAW,
    Aligned,
    align,
    crop,
    cut_out,
    dlib_model,
    face_mask,
    face_weight,
    find_faces,
    places,
)
from expr_lib.importers.pose import STILL, turn, yaw
from expr_lib.measure import plots
from expr_lib.measure.evaluate import write_results
from expr_lib.photographs import SEEN, editor, express_photograph, find, swap_photographs
from expr_lib.swap import amounts, animated, load, read_f_r

ROOT = Path(__file__).parents[1]
PORTRAITS = (
    ROOT / "notebooks/figures/astronaut.jpg",
    Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg",
)
EXPRESSIONS: dict[str, dict[str, float]] = {
    "at rest": {},
    "smile": {"AU6": 3, "AU12": 4},
    "surprise": {"AU1": 4, "AU2": 4, "AU5": 3, "AU25": 2, "AU26": 3},
    "anger": {"AU4": 4, "AU7": 3, "AU23": 3},
    "sadness": {"AU1": 3, "AU4": 2, "AU15": 4, "AU17": 3},
    "disgust": {"AU9": 4, "AU10": 3},
    "eyes closed": {"AU43": 5},
}
ANGLES = (0, 15, 30, 35, 40, 45, 60, 75, 90)
FRAMES = (1000, 2000, 3000)  # pixels that the frame of the face has in a photograph of 4000 x 6000


def recognizer() -> Any:
    landmarks = dlib.shape_predictor(dlib_model("shape_predictor_68_face_landmarks.dat"))
    network = dlib.face_recognition_model_v1(dlib_model("dlib_face_recognition_resnet_model_v1.dat"))

    def embed(photo: np.ndarray, cut: Aligned) -> np.ndarray:
        box = dlib.rectangle(*(int(x) for x in (*cut.points.min(0), *cut.points.max(0))))
        chip = dlib.get_face_chip(photo, landmarks(photo, box), size=150, padding=0.25)
        return np.array(network.compute_face_descriptor(chip))

    return embed


def sharpness(photo: np.ndarray, cut: Aligned) -> float:
    """Variance of the Laplacian of the gray values inside the face, at the photograph's own resolution."""
    side = round(1 / float(np.hypot(*cut.matrix[:, 0])))
    gray = crop(photo, cut.matrix, side).mean(2)
    laplacian = 4 * gray[1:-1, 1:-1] - gray[:-2, 1:-1] - gray[2:, 1:-1] - gray[1:-1, :-2] - gray[1:-1, 2:]
    return float(laplacian[face_mask(side)[1:-1, 1:-1] > 0.5].var())


def drivers(n: int = 4) -> list[tuple[np.ndarray, Aligned]]:
    """Rendered people with strong expressions, as if they were photographs."""
    plan = plan_faces(FacesConfig(100, 10, SEEN, seed=HELD_OUT_SEED, val=0.0, test=1.0))
    strength = plan.au.sum(1) * (plan.views.yaw.abs() < 12)
    images = plan.render(load_renderer(), strength.topk(4 * n).indices[::4])[0].numpy()
    frame = np.array([[1 / SEEN, 0, 0], [0, 1 / SEEN, 0]])
    return [(image, Aligned(image, np.zeros((68, 2)), frame)) for image in images]


def changes(swapper: Any, photos: list[tuple[str, np.ndarray, Aligned]]) -> list[dict[str, Any]]:
    """Every photograph swapped with itself, with the others and with rendered faces, and given every expression."""
    embed, rows, all_of_it = recognizer(), [], amounts(swapper.au_names)
    rendered = [(f"render {k}", *driver) for k, driver in enumerate(drivers())]
    for name, photo, cut in photos:
        before, sharp = embed(photo, cut), sharpness(photo, cut)
        everything = places(cut.matrix, slice(0, photo.shape[0]), slice(0, photo.shape[1]))
        outside = face_weight(everything) == 0
        jobs: list[tuple[str, str, Any]] = [
            (
                "itself" if other == name else "swap",
                other,
                partial(swap_photographs, swapper, (photo, image), (cut, face)),
            )
            for other, image, face in (*photos, *rendered)
        ]
        jobs += [
            ("expression", what, partial(express_photograph, swapper, photo, cut, asked, from_rest=True))
            for what, asked in EXPRESSIONS.items()
        ]
        for kind, other, job in jobs:
            done = job() if kind == "expression" else job(all_of_it)[0]
            rows.append(
                {
                    "photograph": name, "kind": kind, "with": other,
                    "identity_distance": float(np.linalg.norm(embed(done, cut) - before)),
                    "sharpness": sharpness(done, cut) / sharp,
                    "changed_outside": int((done != photo).any(-1)[outside].sum()),
                    "picture": crop(done, cut.matrix, 240),
                }
            )  # fmt: skip
    return rows


def cost(frame: int) -> dict[str, float]:
    """Seconds and memory of one expression in a photograph of 24 megapixels, without reading, finding and writing."""
    swapper, photo = load(), read_image(PORTRAITS[0])
    found = align(photo, SEEN)
    scale = frame * float(np.hypot(*found.matrix[:, 0]))  # enlarged until the frame of the face has this size
    size = (round(photo.shape[1] * scale), round(photo.shape[0] * scale))
    corner = np.array([max(0, (size[0] - 4000) // 2), max(0, (size[1] - 6000) // 2)])
    box = (*corner / scale, *np.minimum((corner + np.array([4000, 6000])) / scale, photo.shape[1::-1]))
    part = Image.fromarray(photo).resize((min(4000, size[0]), min(6000, size[1])), box=box)
    large = np.zeros((6000, 4000, 3), np.uint8)
    large[: part.height, : part.width] = np.array(part)
    cut = cut_out(large, found.points * scale - corner, SEEN)
    express_photograph(swapper, photo, found, {"AU12": 4.0})  # warm up
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    seconds, core = [], []
    for _ in range(3):
        began, spent = time.perf_counter(), time.process_time()
        express_photograph(swapper, large, cut, {"AU26": 4.0, "AU25": 3.0})
        seconds.append(time.perf_counter() - began)
        core.append(time.process_time() - spent)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"frame": frame, "seconds": min(seconds), "core_seconds": min(core), "extra_mib": peak - resident}


def poses(n: int = 40) -> list[dict[str, float]]:
    """Rendered people turned by known angles to either side: what dlib finds, what is read, and what is accepted."""
    plan, renderer, rows = plan_faces(FacesConfig(n, 1, 256, seed=HELD_OUT_SEED)), load_renderer(), []
    for angle in ANGLES:
        read = []
        for k in range(n):
            view = plan.views[[k]]
            view.yaw.fill_(angle * (-1) ** k)
            image, _ = renderer(plan.subjects[[k]], plan.au[[k]], view, 256)
            photo = (image[0].permute(1, 2, 0) * 255).byte().numpy()
            photo = np.pad(photo, ((60, 60), (60, 60), (0, 0)), constant_values=128)
            for points in find_faces(photo)[:1]:
                try:
                    accepted = bool(cut_out(photo, points, 64))
                except ValueError:
                    accepted = False
                read.append((yaw(points) * (-1) ** k, accepted))
        row: dict[str, float] = {"angle": angle, "of": n, "found": len(read)}
        if read:
            angles = np.array([x for x, _ in read])
            row |= {"mean": angles.mean(), "low": angles.min(), "high": angles.max()}
            row |= {"error": np.abs(angles - angle).mean(), "accepted": sum(ok for _, ok in read)}
        rows.append({key: round(float(value), 1) for key, value in row.items()})
    return rows


def animation() -> list[dict[str, Any]]:
    """Frames a second that get an expression, without reading and writing: a picture, and a face in a photograph."""
    swapper, photo = load(), read_image(PORTRAITS[0])
    face, picture = find(swapper, photo), drivers(1)[0][0]
    f_r = read_f_r(swapper, picture).repeat(32, 1, 1)
    _, give = editor(swapper, photo, face)
    rows = []
    for what, frames in (
        (f"a picture of {SEEN} px", lambda: list(animated(swapper, picture, f_r))),
        (f"a photograph of {photo.shape[1]} x {photo.shape[0]} px", lambda: [give(x[None]) for x in f_r]),
    ):
        frames()  # warm up
        began, spent = time.perf_counter(), time.process_time()
        frames()
        seconds, core = time.perf_counter() - began, time.process_time() - spent
        rows.append({"what": what, "frames_per_second": 32 / seconds, "of_a_core": 32 / core})
    return rows


def same_pose(n: int = 40) -> dict[str, Any]:
    """By how many degrees yaw and pitch of two expressions in one pose differ, by the landmarks that dlib finds."""
    plan, renderer, found = (
        plan_faces(FacesConfig(n, 3, 256, seed=HELD_OUT_SEED, images_per_take=3)),
        load_renderer(),
        [],
    )
    for k in range(n):
        turns = []
        for image in plan.render(renderer, [3 * k + 1, 3 * k + 2])[0].numpy():
            photo = np.pad(image, ((60, 60), (60, 60), (0, 0)), constant_values=128)
            turns += [turn(points, STILL) for points in find_faces(photo)[:1]]
        found += [np.abs(np.subtract(*turns))] if len(turns) == 2 else []
    apart = np.array(found)  # (pairs, 2)
    return {
        "pairs": len(apart), "median": np.median(apart, 0).tolist(), "nine_in_ten": np.quantile(apart, 0.9, 0).tolist(),
        "near": NEAR, "are_near": float((apart <= NEAR).all(1).mean()),
    }  # fmt: skip


def sheet(rows: list[dict[str, Any]], photos: list[tuple[str, np.ndarray, Aligned]], names: set[str]) -> Any:
    """All changes of the public portraits, the failures among them: nothing is chosen."""
    table = {
        name: [
            row
            for row in rows
            if row["photograph"] == name and row["with"] in {*names, *EXPRESSIONS} | {f"render {k}" for k in range(4)}
        ]
        for name in names
    }
    columns = max(map(len, table.values())) // 2 + 1
    figure, axes = plt.subplots(
        2 * len(table), columns, figsize=(1.35 * columns, 3.1 * len(table)), layout="constrained"
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for k, (name, of_it) in enumerate(sorted(table.items())):
        cut = next(cut for other, _, cut in photos if other == name)
        photo = next(photo for other, photo, _ in photos if other == name)
        tiles = [(f"{name}: input", crop(photo, cut.matrix, 240))]
        tiles += [
            (f"{row['with']}  {row['identity_distance']:.2f}  {row['sharpness']:.2f}", row["picture"]) for row in of_it
        ]
        for axis, (title, picture) in zip(axes[2 * k : 2 * k + 2].flat, tiles, strict=False):
            axis.imshow(picture)
            axis.set_title(title, fontsize=6)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="photographs of your own, measured too")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    options = parser.parse_args()
    swapper, photos = load(), []
    own = sorted(options.folder.iterdir()) if options.folder else []
    for path in (*PORTRAITS, *own):
        try:
            photo = read_image(path)
            photos.append((path.stem if path in PORTRAITS else f"own {len(photos) - 1}", photo, find(swapper, photo)))
        except ValueError as error:
            print(f"{path.name}: left out: {error}")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        costs = pool.map(cost, FRAMES, chunksize=1)
    rows = changes(swapper, photos)
    with plots.style():
        plots.save(sheet(rows, photos, {path.stem for path in PORTRAITS}), options.out / "photographs.png", colors=128)
    results = {
        "command": "python benchmarks/photographs.py", "machine": machine(), "photographs": len(photos), "cost": costs,
        "changes": [{key: value for key, value in row.items() if key != "picture"} for row in rows],
        "animation": animation(), "max_yaw": MAX_YAW, "poses": poses(), "same_pose": same_pose(),
    }  # fmt: skip
    write_results(options.out / "photographs.json", results)
    text = markdown(results)
    (options.out / "photographs.md").write_text(text)
    print(text)


def markdown(results: dict[str, Any]) -> str:
    lines = [
        "| change | n | identity distance, median (worst) | sharpness, median (worst) | pixels changed outside |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind in ("itself", "swap", "expression"):
        of_it = [row for row in results["changes"] if row["kind"] == kind]
        distance, sharp = ([row[key] for row in of_it] for key in ("identity_distance", "sharpness"))
        outside = sum(row["changed_outside"] for row in of_it)
        numbers = f"{np.median(distance):.2f} ({max(distance):.2f}) | {np.median(sharp):.2f} ({min(sharp):.2f})"
        lines.append(f"| {kind} | {len(of_it)} | {numbers} | {outside} |")
    lines += ["", "| frame of the face in 24 megapixels | seconds | seconds of a core | extra memory, MiB |"]
    lines += ["|---:|---:|---:|---:|"]
    for row in results["cost"]:
        seconds = f"{row['seconds']:.2f} | {row['core_seconds']:.2f}"
        lines.append(f"| {row['frame']} | {seconds} | {row['extra_mib']:.0f} |")
    lines += ["", "| animated | frames/s | frames/s of a core |", "|---|---:|---:|"]
    lines += [
        f"| {row['what']} | {row['frames_per_second']:.0f} | {row['of_a_core']:.0f} |" for row in results["animation"]
    ]
    lines += [
        "",
        "| head turned by | found | read, mean (lowest to highest) | mean error | accepted |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in results["poses"]:
        read = (
            f"{row['mean']:.0f} ({row['low']:.0f} to {row['high']:.0f}) | {row['error']:.1f} | {row['accepted']:.0f}"
            if row["found"]
            else "- | - | 0"
        )
        lines.append(f"| {row['angle']:.0f} | {row['found']:.0f} of {row['of']:.0f} | {read} |")
    same = results["same_pose"]
    (yaw_, pitch), (far_yaw, far_pitch) = same["median"], same["nine_in_ten"]
    lines += [
        "",
        f"Two expressions in one pose differ by {yaw_:.1f} degrees in yaw and {pitch:.1f} in pitch (median of "
        f"{same['pairs']} pairs; nine in ten by {far_yaw:.1f} and {far_pitch:.1f} at most), by the landmarks that pair "
        f"the images of a take. {same['are_near']:.0%} are within {same['near']:g} degrees, so that they are paired.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
