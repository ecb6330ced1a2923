"""How fast are faces rendered? Images per second and peak memory against batch size and resolution.

    python benchmarks/faces.py            # about a minute; on the GPU too where there is one

Every setting runs in a process of its own (so that its peak memory is its own), once to warm up, then several times;
the median counts. Writes benchmarks/results/faces.json and prints the table.
"""

import json
import multiprocessing
import os
import platform
import statistics
import time
from pathlib import Path

SIZES, BATCHES = (64, 128, 256), (1, 8, 64)
MAX_PIXELS = 64 * 128 * 128  # in a batch: 16 GB machines must manage
SECONDS = 4.0  # for each setting, but at least three rounds

Row = dict[str, float | int | str]


def machine() -> dict:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "devices": ["cpu", "cuda"] if cuda else ["cpu"],
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")  # Linux; elsewhere the platform knows
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(setting: tuple[str, int, int]) -> Row:
    """One line of the table: render the same rows again and again, up to the uint8 pixels on the CPU."""
    import resource

    import torch

    from expr_lib.faces.plan import FacesConfig, plan_faces
    from expr_lib.faces.render import load_renderer

    device, size, batch = setting
    plan = plan_faces(FacesConfig(n_subjects=max(batch, 2), images_per_subject=1, size=size))
    renderer, rows = load_renderer(device), torch.arange(batch)
    seconds: list[float] = []
    with torch.inference_mode():
        plan.render(renderer, rows)[0].cpu()  # warm up
        while len(seconds) < 3 or (sum(seconds) < SECONDS and len(seconds) < 50):
            start = time.perf_counter()
            plan.render(renderer, rows)[0].cpu()  # .cpu() waits for the GPU
            seconds.append(time.perf_counter() - start)
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if platform.system() == "Darwin" else 1)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else kib / 2**10
    return {
        "device": device,
        "size": size,
        "batch": batch,
        "images_per_second": round(batch / statistics.median(seconds), 1),
        "slowest_round": round(batch / max(seconds), 1),
        "fastest_round": round(batch / min(seconds), 1),
        "rounds": len(seconds),
        "peak_memory_mib": round(peak),
    }


def main() -> None:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        about = pool.apply(machine)
        settings = [(d, s, b) for d in about["devices"] for s in SIZES for b in BATCHES if b * s * s <= MAX_PIXELS]
        print(f"{about['processor']}, {about['threads']} threads, torch {about['torch']}, GPU: {about['gpu']}\n")
        print("| device | size | batch | images/s | slowest - fastest round | peak memory (MiB) |")
        print("|---|---:|---:|---:|---:|---:|")
        rows = []
        for row in pool.imap(measure, settings):
            rows.append(row)
            spread = f"{row['slowest_round']} - {row['fastest_round']}"
            cells = (row["device"], row["size"], row["batch"], row["images_per_second"], spread, row["peak_memory_mib"])
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    path = Path(__file__).parent / "results" / "faces.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
