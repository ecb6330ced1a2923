"""How fast is the second generation? A training step beside the first generation's, a swap at five sizes, a film.

    python benchmarks/moving.py          # three minutes on two cores, into benchmarks/results/moving.json and .md

All in one process, in turn, round after round; medians. Both generations train with the default batch of 8 pairs of 64
pixels. A swap is one pair in both directions by the shipped weights: the encoder looks at a reduced copy, the pixels
are moved at full size. The exponent is the slope of log time over log number of pixels: 1 is proportional to the
pixels, below 1 a part of the work does not grow. FLOPs are counted by torch; bicubic sampling is not among them. The
film is what `expr-lib animate` does with each frame: it reads the expression and gives it to a still of 256 pixels;
reading and writing files is not included. Cores are the CPU time divided by the time on the clock.
"""

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faces import machine
from speed import flops, interleaved, peak_flops, random_faces

from expr_lib.apps.animate import BATCH
from expr_lib.datasets import pair_batch
from expr_lib.images import square
from expr_lib.measure.evaluate import write_results
from expr_lib.model import ModelConfig
from expr_lib.step import TrainConfig, batch_of, train_step
from expr_lib.swap import animated, driven, load, read_f_r, smoothed
from expr_lib.take_step import take_step
from expr_lib.train import build_nets

SIZES = (64, 128, 256, 512, 1024)
ROUNDS, SECONDS = 15, 120.0
STILL, FRAMES = 256, 64


def training_step(generation: str) -> Any:
    """A step of one generation as it is trained by default, on random images."""
    takes = generation == "moved, takes"
    config = TrainConfig(
        supervision="takes" if takes else "unpaired", generator="moved" if takes else "drawn",
        model=ModelConfig(generator="moved" if takes else "drawn"),
    )  # fmt: skip
    data = random_faces(64, 64, config.model.n_aus)
    data = replace(data, take=np.arange(64) // 4, subject=np.arange(64) // 8)
    nets = build_nets(config, data)
    nets.swapper.warm = True
    subjects = torch.from_numpy(np.unique(data.subject)).to(nets.accelerator.device)
    batch = batch_of(pair_batch(data, 0, config.batch_size, 0, nets.accelerator.device, takes=takes), subjects, config)
    batch.x.normal_(0, 0.4).clamp_(-1, 1)
    return nets, (lambda: (take_step if takes else train_step)(nets, batch, config)), 2 * config.batch_size


def film(swapper: Any) -> dict[str, float]:
    """Frames/s of `expr-lib animate` with random images, and how many cores that takes."""
    size, rng = swapper.config.size, np.random.default_rng(0)
    still, frames = (rng.integers(0, 256, (*shape, 3), np.uint8) for shape in ((STILL, STILL), (FRAMES, size, size)))

    def animate() -> None:
        f_r = torch.cat([read_f_r(swapper, frames[k : k + BATCH]) for k in range(0, FRAMES, BATCH)])
        own = read_f_r(swapper, square(still, size))
        assert len(list(animated(swapper, still, driven(swapper, own, smoothed(f_r, 1.0))))) == FRAMES

    animate()  # warm up
    spent = time.process_time()
    seconds = interleaved({"film": animate}, ROUNDS, SECONDS, warm=True)["film"]
    return {
        "pixels": STILL, "frames_per_second": FRAMES / statistics.median(seconds),
        "cores": (time.process_time() - spent) / sum(seconds),
    }  # fmt: skip


def main() -> None:
    generations = ("moved, takes", "drawn, unpaired")
    steps = {name: training_step(name) for name in generations}
    found = interleaved({name: step for name, (_, step, _) in steps.items()}, ROUNDS, SECONDS)
    here = steps["moved, takes"][0].accelerator
    dtype = torch.bfloat16 if here.mixed_precision == "bf16" else torch.float32
    peak = peak_flops(here.device, dtype)["convolution"]
    train = []
    for name, (_, step, images) in steps.items():
        seconds = statistics.median(found[name])
        work = flops({"step": step})
        train.append(
            {"generation": name, "images_per_second": images / seconds, "gflops": work / 1e9,
             "share_of_peak": work / seconds / peak}
        )  # fmt: skip

    swapper = load(device=str(here.device))
    pictures = {size: torch.rand(2, 2, 3, size, size, device=here.device) * 2 - 1 for size in SIZES}

    def swap(size: int) -> Any:
        with torch.inference_mode():
            return swapper.swap(pictures[size][0][:1], pictures[size][1][:1])

    times = interleaved({size: (lambda size=size: swap(size)) for size in SIZES}, ROUNDS, SECONDS)
    medians = {size: statistics.median(times[size]) for size in SIZES}
    pixels, seconds = np.log([size**2 for size in SIZES]), np.log(list(medians.values()))
    results = {
        "machine": machine(), "precision": str(dtype), "encoder": swapper.config.size, "train": train,
        "faster": train[0]["images_per_second"] / train[1]["images_per_second"],
        "swap_ms": {str(size): 1000 * value for size, value in medians.items()},
        "exponent": {
            "all": float(np.polyfit(pixels, seconds, 1)[0]),
            "256 and more": float(np.polyfit(pixels[2:], seconds[2:], 1)[0]),
        },
        "animate": film(swapper),
    }  # fmt: skip
    lines = ["| training | images/s | GFLOP a step | share of peak |", "|---|---:|---:|---:|"]
    lines += [
        "| {generation} | {images_per_second:.0f} | {gflops:.0f} | {share_of_peak:.0%} |".format(**row) for row in train
    ]
    lines += ["", "| one pair swapped | " + " | ".join(f"{size} px" for size in SIZES) + " |", "|---" * 6 + "|"]
    lines.append("| ms | " + " | ".join(f"{1000 * value:.0f}" for value in medians.values()) + " |")
    lines += [
        "",
        "Exponent in the number of pixels: {all:.2f}, from 256 px on {256 and more:.2f}.".format(**results["exponent"]),
        "", "| film, `expr-lib animate` | frames/s | cores |", "|---|---:|---:|",
        "| {pixels} px | {frames_per_second:.0f} | {cores:.1f} |".format(**results["animate"]),
    ]  # fmt: skip
    out = Path(__file__).parent / "results" / "moving.json"
    write_results(out, results)
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines) + f"\n\nwritten: {out}")


if __name__ == "__main__":
    main()
