"""How long does a training take until the swap is nearer to the truth than the input by so much?

    expr-lib faces build/quick && expr-lib train build/quick --run build/quick-run
    python benchmarks/time_to_gain.py build/quick-run             # also while it runs

Reads the gain on held-out takes that a run writes beside its sample pictures (`run.take_gain`), with the times that
TensorBoard has kept. A run that was interrupted counts its pauses. Then the last checkpoint is measured on `--pairs`
held-out pairs, and all is written to `--out` as JSON and Markdown.
"""

import argparse
from pathlib import Path
from typing import Any

from common import gains

from expr_lib.apps.held_out import held_out_faces, measured_size
from expr_lib.checkpoint import load_swapper
from expr_lib.faces.render import load_renderer
from expr_lib.measure.evaluate import write_results
from expr_lib.run import CHECKPOINT

LEVELS = (0.1, 0.2, 0.225, 0.3, 0.4, 0.45)  # 0.225 is half of the bar, 0.45


def reached(steps: list[int], seconds: list[float], values: list[float]) -> list[dict[str, Any]]:
    """The first time and step at which each of `LEVELS` was reached."""
    found = []
    for level in LEVELS:
        first = next((k for k, value in enumerate(values) if value >= level), None)
        minutes, step = (None, None) if first is None else (round(seconds[first] / 60, 2), steps[first])
        found.append({"gain": level, "minutes": minutes, "step": step})
    return found


def text_of(results: dict[str, Any]) -> str:
    """The Markdown beside the result file."""
    lines = ["| `gain` inside takes | minutes | steps |", "|---:|---:|---:|"]
    for row in results["reached"]:
        time, step = ("–", "–") if row["step"] is None else (f"{row['minutes']:.1f}", row["step"])
        lines.append(f"| {row['gain']:g} | {time} | {step} |")
    measured = [
        "`{}` {value:.2f} ({low:.2f} – {high:.2f})".format(name, **results[name]) for name in ("gain", "nearer")
    ]
    return "\n".join(lines) + (
        f"\n\nAfter {results['steps']} steps and {results['minutes']:.1f} minutes, on {results['pairs']} pairs of "
        f"held-out people in both directions: {', '.join(measured)}.\n"
    )


def main() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run on takes")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("build/time-to-gain.json"))
    args = parser.parse_args()
    events = EventAccumulator(str(args.run / "tensorboard"), {"scalars": 0}).Reload()
    losses, found = events.Scalars("loss/au"), events.Scalars("gain")
    start = losses[0].wall_time
    table = reached([e.step for e in found], [e.wall_time - start for e in found], [e.value for e in found])
    swapper = load_swapper(args.run / CHECKPOINT)
    measured, _ = gains(swapper, held_out_faces(measured_size(swapper.config)), load_renderer(), args.pairs)
    last = max([*losses, *found], key=lambda event: event.step)
    minutes = round((last.wall_time - start) / 60, 2)
    results = {"reached": table, "steps": last.step, "minutes": minutes, "pairs": args.pairs, **measured}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_results(args.out, results)
    args.out.with_suffix(".md").write_text(text_of(results), encoding="utf-8")
    print(text_of(results))


if __name__ == "__main__":
    main()
