"""How fast are images imported, in how much memory, and is training fed fast enough?

    python benchmarks/importing.py            # 100,000 images in the size of CelebA's; minutes, 3 GB of disk
    python benchmarks/importing.py 2000       # fewer, to try it; only the full number goes into results/importing.json

The import runs as the command does, in a process of its own; memory is the sum over it and its workers (USS: what is
theirs alone), looked at ten times a second. It is killed once on the way and started again. Then batches are drawn
from the memory map as training draws them, and the default model is trained for a few steps from it.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from expr_lib import datasets, train
from expr_lib.datasets import FaceData, pair_batch
from expr_lib.facs import AU_NAMES
from expr_lib.step import TrainConfig

HEIGHT, WIDTH, PEOPLE = 218, 178, 1000


def make_source(root: Path, n: int) -> None:
    """n photographs in the size of CelebA: 64 different ones, linked again and again, and a table of labels."""
    rng = np.random.default_rng(0)
    (root / "photos").mkdir(parents=True)
    for i in range(64):
        noise = rng.integers(0, 256, (28, 23, 3), np.uint8)
        Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(root / f"{i}.jpg", quality=90)
    for i in range(n):
        os.link(root / f"{i % 64}.jpg", root / f"photos/{i:06d}.jpg")
    for i in range(64):
        (root / f"{i}.jpg").unlink()
    with (root / "labels.csv").open("w") as file:
        file.write(",".join(["image", "subject", *AU_NAMES]) + "\n")
        for i, au in enumerate(rng.uniform(0, 5, (n, len(AU_NAMES))).round(2)):
            file.write(",".join([f"photos/{i:06d}.jpg", str(i % PEOPLE), *map(str, au)]) + "\n")


def run(source: Path, out: Path, kill_after: int = 0) -> tuple[float, float]:
    """Import, or kill the import once `kill_after` images are written -> seconds, peak MiB of all its processes."""
    command = [sys.executable, "-m", "expr_lib.apps.cli", "import", "table", str(source), str(out)]
    began, peak = time.perf_counter(), 0.0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    partial = out / "images.npy.partial"
    while process.poll() is None:
        memory = 0
        for one in (process, *process.children(recursive=True)):
            try:
                memory += one.memory_full_info().uss
            except psutil.Error:
                continue  # it has just ended
        peak = max(peak, memory / 2**20)
        if kill_after and partial.exists() and partial.stat().st_size > kill_after * 64 * 64 * 3:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            break
        time.sleep(0.1)
    if process.returncode and not kill_after:
        raise SystemExit(f"the import ended with {process.returncode}")
    return time.perf_counter() - began, peak


def feed(data: FaceData, steps: int = 200, batch_size: int = 8) -> float:
    """Images a second that `pair_batch` reads from the memory map (not from a copy on the device)."""
    datasets.RESIDENT_BYTES = 0
    began = time.perf_counter()
    for step in range(steps):
        pair_batch(data, step, batch_size, seed=0)
    return 2 * batch_size * steps / (time.perf_counter() - began)


def training(data: FaceData, run: Path, steps: int = 30) -> tuple[float, float]:
    """Images a second that training takes on the CPU, and the share of its time that it waits for pixels."""
    datasets.RESIDENT_BYTES = 0
    draw, begins, waits = train.batches, list[float](), list[float]()

    def timed(*args: Any, **options: Any) -> Iterator[Any]:
        batches = draw(*args, **options)
        while True:
            begins.append(time.perf_counter())
            batch = next(batches)
            waits.append(time.perf_counter() - begins[-1])
            yield batch

    train.batches = timed
    config = TrainConfig(steps=steps, warmup_steps=0, device="cpu")
    train.train(config, data, run)
    train.batches = draw
    seconds = begins[-1] - begins[1]  # the first batch has nothing to be read beside
    return 2 * config.batch_size * (steps - 2) / seconds, sum(waits[1:-1]) / seconds


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    root = Path(tempfile.mkdtemp(prefix="importing-"))
    try:
        make_source(root / "source", n)
        killed_seconds, killed_peak = run(root / "source", root / "out", kill_after=n // 2)
        seconds, peak = run(root / "source", root / "out")
        whole_seconds, whole_peak = run(root / "source", root / "whole")
        same = (root / "out/images.npy").read_bytes() == (root / "whole/images.npy").read_bytes()
        data = FaceData.open(root / "whole")
        fed, (taken, waiting) = feed(data), training(data, root / "run")
    finally:
        shutil.rmtree(root)
    result = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
        "images": n,
        "seconds": round(whole_seconds, 1),
        "images_per_second": round(n / whole_seconds),
        "peak_memory_mib": round(max(peak, whole_peak, killed_peak)),
        "killed_after_seconds": round(killed_seconds, 1),
        "seconds_to_finish_after_the_kill": round(seconds, 1),
        "same_bytes_after_the_kill": same,
        "images_per_second_from_the_memory_map": round(fed),  # most of it from the system's cache
        "images_per_second_that_training_takes": round(taken, 1),
        "share_of_training_spent_waiting_for_pixels": float(f"{waiting:.2g}"),
    }
    print(json.dumps(result, indent=1))
    if n >= 100_000:
        path = Path(__file__).parent / "results" / "importing.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
