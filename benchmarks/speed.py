"""Measure the speed of a training step and of a swap, and the growth of the cost, for our method and the baselines.

    python benchmarks/speed.py --short     # make bench: under five minutes on two cores, writes build/bench.json
    python benchmarks/speed.py             # 25 minutes; writes benchmarks/results/speed.json, .md and .png

One process runs all methods of a setting in turn, for 10 rounds or, with --short, as many as the time allows; the
table has the median and the number of rounds. All methods get the same images, batch, precision and threads. In a full
step every network learns from the batch; in the papers of the baselines the generator learns from every fifth batch
only, which is the column "as published". Peak memory is measured in a separate process that takes two steps. torch
counts the FLOPs, which are compared with those of a large matrix product and a large convolution in the same type on
this machine. A profile shows how a step of ours spends its time, and variants of it are timed.
"""

import argparse
import gc
import math
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from baselines import METHODS, BaselineConfig, Editor, branch, like_ours, n_parameters
from faces import machine
from speed_report import picture, report
from torch import Tensor, multiprocessing, nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from expr_lib import datasets
from expr_lib.datasets import FaceData, pair_batch
from expr_lib.measure.evaluate import write_results
from expr_lib.model import ModelConfig
from expr_lib.step import TrainConfig, batch_of, partner, train_step
from expr_lib.train import build_nets

Tasks = dict[Any, Callable[[], Any]]


class Setting(NamedTuple):
    """A method with its width, data sizes and device."""

    method: str = "ours"  # or one of METHODS
    width: str = "ours"  # of a baseline: as many parameters as ours, or "published"
    size: int = 64
    pairs: int = 4
    n_aus: int = 17
    device: str = "cpu"  # or "auto", the accelerator
    precision: str = "auto"
    fused: bool | None = True  # of ours: Adam as one kernel for each weight; None: torch's default
    compile: bool = False  # of ours


class Contestant(NamedTuple):
    """A method that is ready to run."""

    parts: Tasks  # the parts of a full training step
    swap: Callable[[], Tensor]  # the batch, swapped in both directions
    parameters: int  # at run time
    trained: int  # in training, with the discriminators
    device: torch.device
    dtype: torch.dtype  # of the convolutions


# ------------------------------------------------------------------------------------------------------- measuring


def random_faces(rows: int, size: int, n_aus: int, folder: Path | None = None) -> FaceData:
    """Random labels and black images; with `folder`, these are a sparse memory-mapped file, which takes no space."""
    rng, shape = np.random.default_rng(0), (rows, size, size, 3)
    if folder:
        np.lib.format.open_memmap(folder / f"{rows}.npy", "w+", np.uint8, shape)  # grows without being written
        images = datasets.read_images(folder / f"{rows}.npy", shape)
    else:
        images = np.zeros(shape, np.uint8)
    au = (rng.uniform(0, 5, (rows, n_aus)) * (rng.random((rows, n_aus)) < 0.3)).astype(np.float32)
    names = tuple(f"AU{k}" for k in range(n_aus))
    return FaceData(images, np.arange(rows) // 2, np.full(rows, "train"), au, names, {})


def prepare(s: Setting) -> Contestant:
    config = TrainConfig(
        batch_size=s.pairs, device=s.device, precision=s.precision, compile=s.compile,
        model=ModelConfig(size=s.size, n_aus=s.n_aus),
    )  # fmt: skip
    data = random_faces(4 * s.pairs, s.size, s.n_aus)
    nets = build_nets(config, data)
    for optimizer in (nets.opt_G, nets.opt_D, nets.opt_f):
        for group in optimizer.param_groups:
            group["fused"] = s.fused
    here = nets.accelerator
    subjects = torch.from_numpy(np.unique(data.subject)).to(here.device)
    batch = batch_of(pair_batch(data, 0, s.pairs, 0, here.device), subjects, config)
    batch.x.normal_(0, 0.4).clamp_(-1, 1)
    swapper: Any = nets.ema
    parts: Tasks = {"step": lambda: train_step(nets, batch, config)}
    learns: list[nn.Module] = [nets.swapper, nets.D, nets.D_f, nets.D_r]
    runs: nn.Module = nets.ema
    if s.method != "ours":
        c = BaselineConfig(size=s.size, n_aus=s.n_aus)
        method = Editor(s.method, c if s.width == "published" else like_ours(s.method, c), branch(nets.ema))
        swapper = method.to(here.device, memory_format=torch.channels_last)
        method.autocast = here.autocast
        parts = {"critic": lambda: method.critic_step(batch), "generator": lambda: method.generator_step(batch)}
        learns, runs = [method.G, method.D], method.G

    def swap() -> Tensor:
        swapper.eval()
        with torch.inference_mode(), here.autocast():
            f_f, f_r = swapper.encode(batch.x)
            image = swapper.generate(f_f, partner(f_r))
        swapper.train(s.method != "ours")
        return image

    dtype = torch.bfloat16 if here.mixed_precision == "bf16" else torch.float32
    return Contestant(parts, swap, n_parameters(runs), sum(map(n_parameters, learns)), here.device, dtype)


def timed(task: Callable[[], Any]) -> float:
    """Seconds of one run, including the work that a GPU has not finished."""
    began = time.perf_counter()
    task()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - began


def interleaved(tasks: Tasks, rounds: int, seconds: float, warm: bool = False) -> dict[Any, list[float]]:
    """Seconds of all tasks, in turn, `rounds` times or until `seconds` are over; first once each, unless `warm`."""
    found: dict[Any, list[float]] = {name: [] for name in tasks}
    began = time.perf_counter()
    for task in () if warm else tasks.values():
        timed(task)
    for done in range(rounds):
        if done and time.perf_counter() - began > seconds:
            break
        for name, task in tasks.items():
            found[name].append(timed(task))
    return found


def peak_flops(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """FLOPs a second of a large matrix product and a large convolution: the best of five rounds."""
    n, b = (8192, 64) if device.type == "cuda" else (2048, 4)
    a = torch.randn(n, n, device=device, dtype=dtype)
    x = torch.randn(b, 256, 64, 64, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(256, 256, 3, padding=1, bias=False).to(device, dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        found = interleaved({"matmul": lambda: a @ a, "convolution": lambda: conv(x)}, 5, 60.0)
    work = {"matmul": 2 * n**3, "convolution": 2 * b * 64 * 64 * 256 * 256 * 9}
    return {name: work[name] / min(times) for name, times in found.items()}


def flops(tasks: Tasks) -> int:
    with FlopCounterMode(display=False) as counter:
        for task in tasks.values():
            task()
    return counter.get_total_flops()


def memory(s: Setting) -> float:
    """Increase of the peak memory of a new process by two steps, in MiB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_rise, (s,))


def _rise(s: Setting) -> float:
    before = _peak_mib()
    one = prepare(s)
    for _ in range(2):
        for task in one.parts.values():
            task()
    return torch.cuda.max_memory_allocated() / 2**20 if one.device.type == "cuda" else _peak_mib() - before


def _peak_mib() -> float:
    """Peak memory of this process in MiB."""
    status = Path("/proc/self/status")  # on Linux, ru_maxrss includes the memory of the parent
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)


# ------------------------------------------------------------------------------------------------ ours and the others


def race(size: int, pairs: int, device: str, precision: str, short: bool) -> list[dict[str, Any]]:
    """All methods at one size: rows of the table."""
    settings = [Setting(size=size, pairs=pairs, device=device, precision=precision)]
    widths = ("published",) if short else ("published", "ours")
    settings += [settings[0]._replace(method=name, width=width) for width in widths for name in METHODS]
    ready = {s: prepare(s) for s in settings}
    used = {s: memory(s) for s in settings} if size == 64 or not short else {}
    work = {s: flops(one.parts) for s, one in ready.items()}  # which also warms up
    first = ready[settings[0]]
    peak = peak_flops(first.device, first.dtype)
    tasks: Tasks = {(s, part): task for s, one in ready.items() for part, task in one.parts.items()}
    times = interleaved(tasks, 10, 30.0 if short else math.inf, warm=True)
    swaps = interleaved({s: one.swap for s, one in ready.items()}, 10, 10.0 if short else math.inf)
    rows = []
    for s, one in ready.items():
        seconds = {part: statistics.median(times[s, part]) for part in one.parts}
        step, whole = sum(seconds.values()), [sum(x) for x in zip(*(times[s, part] for part in one.parts), strict=True)]
        published = seconds.get("critic", step) + seconds.get("generator", 0.0) / BaselineConfig.critic_steps
        rows.append({
            **s._asdict(), "device": first.device.type, "precision": str(first.dtype).removeprefix("torch."),
            "parameters": one.parameters, "parameters_in_training": one.trained,
            "images_per_second": round(2 * pairs / step, 2),
            "slowest_round": round(2 * pairs / max(whole), 2), "fastest_round": round(2 * pairs / min(whole), 2),
            "images_per_second_as_published": round(2 * pairs / published, 2),
            "swaps_per_second": round(2 * pairs / statistics.median(swaps[s]), 1), "rounds": len(whole),
            "peak_memory_mib": round(used[s]) if s in used else None,
            "gflop_per_image": round(work[s] / 2 / pairs / 1e9, 2),
            "share_of_peak": round(work[s] / step / max(peak.values()), 3),
            "peak_gflop_per_second": {name: round(x / 1e9) for name, x in peak.items()},
        })  # fmt: skip
    return rows


def latency(device: str, precision: str) -> dict[str, Any]:
    """Milliseconds of a swap of one pair at 128 pixels, both directions."""
    one = prepare(Setting(size=128, pairs=1, device=device, precision=precision))
    times = interleaved({"swap": one.swap}, 50, 10.0)["swap"]
    return {
        "device": one.device.type, "precision": str(one.dtype).removeprefix("torch."), "rounds": len(times),
        "milliseconds": round(1000 * statistics.median(times), 2), "slowest": round(1000 * max(times), 2),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ where the time goes

KINDS = {  # of operators, by name
    "convolutions": r"aten::.*conv", "norms": r"aten::.*norm", "matrix products": r"aten::(mm|addmm|bmm)$",
    "activations": r"aten::.*(silu|relu|threshold|tanh|sigmoid)", "Adam": r".*adam",
    "copies and casts": r"aten::(.*copy|cat|clone|empty|zero|fill)",
    "arithmetic": r"aten::(add|sub|mul|div|neg|abs|pow|sqrt|sum|mean|var|lerp|clamp_min)_?$",
}  # fmt: skip


def spent(one: Contestant) -> dict[str, float]:
    """Share of the time of a warm step of ours that each kind of operator takes; on a GPU, of the GPU time."""
    found = dict.fromkeys((*KINDS, "everything else"), 0.0)
    with profile() as profiler:
        wall = 1e6 * sum(interleaved(one.parts, 5, math.inf, warm=True)["step"])
    gpu = one.device.type == "cuda"
    times = {e.key: e.self_device_time_total if gpu else e.self_cpu_time_total for e in profiler.key_averages()}
    for name, time_of in times.items():
        if kind := next((kind for kind, pattern in KINDS.items() if re.match(pattern, name, re.IGNORECASE)), None):
            found[kind] += time_of
    whole = sum(times.values()) if gpu else wall  # on a CPU, "everything else" includes Python and autograd
    found["everything else"] = whole - sum(found.values())
    return {kind: round(share / whole, 3) for kind, share in found.items()}


def profiled(short: bool, pairs: int, device: str) -> dict[str, Any]:
    """How a step of ours at 64 pixels spends its time, and the time of variants."""
    s = Setting(pairs=pairs, device=device)
    tried = {"Adam as torch has it": s._replace(fused=None), "as it is": s}
    tried |= {} if short else {"E, G and D compiled": s._replace(compile=True)}
    ready = {name: prepare(setting) for name, setting in tried.items()}
    times = interleaved({name: one.parts["step"] for name, one in ready.items()}, 20, 8.0 if short else math.inf)
    share = spent(ready["as it is"])
    return {"size": s.size, "pairs": pairs, "device": device, "share": share, "rounds": len(times["as it is"]),
            "milliseconds": {name: round(1000 * statistics.median(x), 1) for name, x in times.items()}}  # fmt: skip


# ------------------------------------------------------------------------------------------------ how the cost grows


def exponent(x: list[float], y: list[float]) -> float | None:
    """p of y ~ x^p, by least squares in logarithms; None with fewer than two positive y."""
    good = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True) if b > 0]
    return round(float(np.polyfit(*np.array(good).T, 1)[0]), 2) if len(good) > 1 else None


def growth(short: bool, device: str) -> list[dict[str, Any]]:
    """Seconds and, unless `short`, memory of a step of ours for growing image size, batch and number of AUs."""
    axes: dict[str, tuple[int, ...]] = {
        "size": (32, 64, 128, 256), "pairs": (1, 2, 4, 8, 16), "n_aus": (1, 4, 16, 64),
    }  # fmt: skip
    found = []
    for axis, values in axes.items():
        values = values[:3] if short else values
        settings = [Setting(device=device, pairs=2 if axis == "size" else 4)._replace(**{axis: n}) for n in values]
        ready = {s: prepare(s) for s in settings}
        times = interleaved({s: one.parts["step"] for s, one in ready.items()}, 10, 8.0 if short else math.inf)
        kind = next(iter(ready.values())).device.type
        del ready
        gc.collect()
        row: dict[str, Any] = {"axis": axis, "device": kind, "values": list(values), "rounds": len(times[settings[0]])}
        row["seconds"] = [float(f"{statistics.median(times[s]):.3g}") for s in settings]
        row["exponent"] = exponent(row["values"], row["seconds"])
        if not short:
            row["memory_mib"] = [round(memory(s)) for s in settings]
            row["memory_exponent"] = exponent(row["values"], row["memory_mib"])
        found.append(row)
    return found


def reading(short: bool) -> dict[str, Any]:
    """Seconds to read a batch of 8 pairs from sparse files, for data sets of growing size."""
    resident, datasets.RESIDENT_BYTES = datasets.RESIDENT_BYTES, 0
    sizes, step = [1_000, 10_000, 100_000, 1_000_000], iter(range(10**9))
    with tempfile.TemporaryDirectory() as folder:
        sets = {n: random_faces(n, 64, 17, Path(folder)) for n in sizes}
        tasks: Tasks = {n: lambda data=data: pair_batch(data, next(step), 8, 0) for n, data in sets.items()}
        times = interleaved(tasks, 50 if short else 500, 60.0)
    datasets.RESIDENT_BYTES = resident
    seconds = [float(f"{statistics.median(x):.3g}") for x in times.values()]
    return {"axis": "images in the data set", "device": "cpu", "values": sizes, "rounds": len(times[sizes[0]]),
            "seconds": seconds, "exponent": exponent(list(map(float, sizes)), seconds)}  # fmt: skip


def sharing(short: bool) -> dict[str, Any]:
    """Seconds of a step of 8 pairs on the CPU with one process, and with two, of one thread each."""
    seconds = []
    for n in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            multiprocessing.spawn(_one_of, (n, folder, 5 if short else 20), nprocs=n)
            seconds.append(float((Path(folder) / "seconds").read_text()))
    return {"axis": "processes", "device": "cpu", "values": [1, 2], "rounds": 5 if short else 20,
            "seconds": [float(f"{x:.3g}") for x in seconds], "exponent": exponent([1.0, 2.0], seconds)}  # fmt: skip


def _one_of(rank: int, n: int, folder: str, rounds: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=n)
    times = interleaved(prepare(Setting(pairs=8)).parts, rounds, math.inf)["step"]  # no limit: all must stop together
    if rank == 0:
        (Path(folder) / "seconds").write_text(str(statistics.median(times)))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer settings, batches of 2 pairs, rounds ended by time")
    parser.add_argument("--pairs", type=int, help="pairs in a batch; default 4, short 2")
    parser.add_argument("--out", type=Path, help="JSON; a table and a figure are written beside it")
    args = parser.parse_args()
    root, pairs, began = Path(__file__).parents[1], args.pairs or (2 if args.short else 4), time.perf_counter()
    out = args.out or (root / "build/bench.json" if args.short else root / "benchmarks/results/speed.json")
    devices = ["cpu", *(["auto"] if torch.accelerator.is_available() else [])]
    rows: list[dict[str, Any]] = []
    for device in devices:
        for precision in ("auto",) if args.short else ("bf16", "fp32"):
            for size in (64, 128):
                rows += race(size, pairs, device, precision, args.short)
                print(f"{time.perf_counter() - began:.0f} s: {device} {precision} {size} px", flush=True)
    results = {
        "machine": machine(), "short": args.short, "rows": rows,
        "latency": [latency(d, p) for d in devices for p in (("auto",) if args.short else ("bf16", "fp32"))],
        "profile": profiled(args.short, pairs, devices[-1]),
        "growth": [*growth(args.short, devices[-1]), reading(args.short), sharing(args.short)],
        "seconds": round(time.perf_counter() - began),
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    write_results(out, results)
    text = report(results, f"{out.stem}.png")
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    picture(results, out.with_suffix(".png"))
    print(f"{text}\n{results['seconds']} s, written: {out}")


if __name__ == "__main__":
    main()
