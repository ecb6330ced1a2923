"""How fast does training run, and does it wait for data? Images per second, share of the wait, and GPU memory.

    python benchmarks/train.py runs/faces-64      # about two minutes; on the GPU where there is one

Steps of the whole method as `expr-lib train` takes them, after the warm-up, the pictures read from a data set folder by
the thread that reads ahead. Writes benchmarks/results/train.json and prints the table.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from faces import machine

from expr_lib.datasets import FaceData, batches
from expr_lib.measure.evaluate import write_results
from expr_lib.step import TrainConfig, batch_of, train_step
from expr_lib.train import build_nets


def measure(data: FaceData, precision: str, batch_size: int, steps: int, device: str) -> dict[str, float | int | str]:
    """One line of the table: `steps` steps, after three that warm up; medians."""
    config = TrainConfig(batch_size=batch_size, precision=precision, device=device)
    config = replace(config, model=replace(config.model, size=data.size, n_aus=len(data.au_names)))
    nets = build_nets(config, data)
    here = nets.accelerator.device
    subjects = torch.from_numpy(np.unique(data.subject)).to(here)
    pairs = batches(data, batch_size, seed=0, device=here)
    waits, wholes = [], []
    if here.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3 + steps):
        start = time.perf_counter()
        pair = next(pairs)
        waits.append(time.perf_counter() - start)
        loss = train_step(nets, batch_of(pair, subjects, config), config)
        loss["G"].item()  # waits for the GPU
        wholes.append(time.perf_counter() - start)
    step = statistics.median(wholes[3:])
    return {
        "device": here.type,
        "precision": precision,
        "size": data.size,
        "pairs": batch_size,
        "steps": steps,
        "images_per_second": round(2 * batch_size / step, 1),
        "milliseconds": round(1000 * step, 1),
        "waiting_for_data": round(sum(waits[3:]) / sum(wholes[3:]), 4),
        "gpu_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20) if here.type == "cuda" else 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, nargs="+", help="batch sizes; default 8, on a GPU 8 and 64")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "train.json")
    args = parser.parse_args()
    data, about = FaceData.open(args.data).subset("train"), machine()
    print(f"{about['processor']}, {about['threads']} threads, torch {about['torch']}, GPU: {about['gpu']}\n")
    print("| device | precision | size | pairs | images/s | ms a step | waiting for data | GPU memory (MiB) |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    rows = []
    for device in ("cpu", *(["auto"] if torch.accelerator.is_available() else [])):
        for pairs in args.pairs or ([8] if device == "cpu" else [8, 64]):
            for precision in ("fp32", "bf16"):
                row = measure(data, precision, pairs, args.steps, device)
                rows.append(row)
                cells = [*list(row.values())[:4], *list(row.values())[5:7], f"{row['waiting_for_data']:.2%}"]
                print("| " + " | ".join(map(str, [*cells, row["gpu_memory_mib"] or "–"])) + " |", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_results(args.out, {"machine": about, "data": args.data.name, "rows": rows})
    print(f"\nwritten: {args.out}")


if __name__ == "__main__":
    main()
