"""How long does a training take until the swap is nearer to the truth than the input by so much?

    expr-lib faces build/quick && expr-lib train build/quick --run build/quick-run
    python benchmarks/time_to_gain.py build/quick-run             # also while it runs

Reads the gain on held-out takes that a run writes beside its sample pictures (`run.take_gain`), with the times that
TensorBoard has kept. A run that was interrupted counts its pauses.
"""

import argparse
from pathlib import Path

LEVELS = (0.1, 0.2, 0.225, 0.3, 0.4, 0.45)  # 0.225 is half of the bar, 0.45


def reached(steps: list[int], seconds: list[float], gains: list[float]) -> str:
    """Markdown: the first time and step at which each level was reached."""
    lines = ["| `gain` inside takes | minutes | steps |", "|---:|---:|---:|"]
    for level in LEVELS:
        first = next((k for k, gain in enumerate(gains) if gain >= level), None)
        lines.append(
            f"| {level:g} | – | – |" if first is None else f"| {level:g} | {seconds[first] / 60:.1f} | {steps[first]} |"
        )
    return "\n".join(lines)


def main() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run on takes")
    events = EventAccumulator(str(parser.parse_args().run / "tensorboard"), {"scalars": 0}).Reload()
    start = min(event.wall_time for event in events.Scalars("loss/au"))
    found = events.Scalars("gain")
    print(reached([e.step for e in found], [e.wall_time - start for e in found], [e.value for e in found]))


if __name__ == "__main__":
    main()
