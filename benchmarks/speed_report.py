"""The tables and the figure of the results of `speed.py`."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from expr_lib.measure import plots


def races_of(results: dict[str, Any]) -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """Rows that were timed together, by device, precision and size, with ours first."""
    races: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in results["rows"]:
        races.setdefault((row["device"], row["precision"], row["size"]), []).append(row)
    return races


def report(results: dict[str, Any], figure: str) -> str:
    """All tables in Markdown, for the file beside the JSON file."""
    about = results["machine"]
    parts = [f"{about['processor']}, {about['threads']} threads, torch {about['torch']}, GPU: {about['gpu']}"]
    head = ("device", "px", "method", "width", "parameters", "images/s (slowest – fastest round)", "as published",
            "swaps/s", "memory (MiB)", "GFLOP/image", "of peak", "rounds")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---|---:|---|---" + "|---:" * (len(head) - 4) + "|"]
    for r in results["rows"]:
        speed = f"{r['images_per_second']} ({r['slowest_round']} – {r['fastest_round']})"
        width = "" if r["method"] == "ours" else r["width"]
        cells = (f"{r['device']} {r['precision']}", r["size"], r["method"], width, f"{r['parameters']:,}", speed,
                 r["images_per_second_as_published"], r["swaps_per_second"], r["peak_memory_mib"] or "–",
                 r["gflop_per_image"], f"{r['share_of_peak']:.1%}", r["rounds"])  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    parts.append("\n".join(lines))
    for (device, precision, size), here in races_of(results).items():
        others = [r for r in here if r["method"] != "ours" and r["width"] == "published"]
        rival, gain = max(others, key=lambda r: r["images_per_second"]), here[0]["images_per_second"]
        slow = max(r["images_per_second_as_published"] for r in others)
        parts.append(
            f"{device} {precision}, {size} px: ours trains {gain / rival['images_per_second']:.1f} times as fast as "
            f"the fastest baseline at its published width ({rival['method']}), {gain / slow:.1f} times where its "
            f"generator learns from every fifth batch. Peak here: {here[0]['peak_gflop_per_second']} GFLOP/s."
        )
    parts += [f"A swap of one pair at 128 px: {x['milliseconds']} ms ({x['device']} {x['precision']})."
              for x in results["latency"]]  # fmt: skip
    of = results["profile"]
    lines = [f"| a step of ours, {of['pairs']} pairs at {of['size']} px: where its time goes | |", "|---|---:|"]
    lines += [f"| {kind} | {share:.0%} |" for kind, share in sorted(of["share"].items(), key=lambda kv: -kv[1])]
    parts.append("\n".join(lines))
    lines = [f"| what was tried (medians of {of['rounds']} rounds) | ms a step |", "|---|---:|"]
    lines += [f"| {name} | {ms} |" for name, ms in of["milliseconds"].items()]
    parts.append("\n".join(lines))
    lines = [
        "| a step of ours against | device | values | seconds | exponent | memory (MiB) | exponent |",
        "|---" * 7 + "|",
    ]
    for r in results["growth"]:
        listed = [", ".join(f"{x:,}" for x in r.get(key, [])) or "–" for key in ("values", "seconds", "memory_mib")]
        cells = (r["axis"], r["device"], *listed[:2], r["exponent"], listed[2], r.get("memory_exponent", "–"))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n\n".join([*parts, "\n".join(lines), f"![Speed, and how it grows]({figure})"]) + "\n"


def picture(results: dict[str, Any], path: Path) -> None:
    """Images/s of a training step of each method; how the cost of a step of ours grows; how long reading takes."""
    races = races_of(results)
    columns = (len(races) + 3) // 2  # two more panels, in two rows
    with plots.style():
        figure, grid = plt.subplots(2, columns, figsize=(6 * columns, 8.4), layout="constrained")
        *panels, grows, reads = grid.flat
        for axis, ((device, precision, size), rows) in zip(panels, races.items(), strict=False):
            names = [r["method"] + ", our size" * (r["width"] == "ours" and r is not rows[0]) for r in rows]
            colors = [plots.COLORS["blue"] if r is rows[0] else plots.QUIET for r in rows]
            bars = axis.barh(names, [r["images_per_second"] for r in rows], color=colors)
            axis.bar_label(bars, fmt="%.3g", padding=4)
            axis.invert_yaxis()
            axis.margins(x=0.15)
            axis.set(title=f"training step, {size} px, {device} {precision}", xlabel="images/s")
            axis.grid(visible=False, axis="y")
        for axis in panels[len(races) :]:
            axis.remove()
        for row in results["growth"]:
            name, x, y = row["axis"].replace("n_aus", "action units"), np.array(row["values"]), np.array(row["seconds"])
            if name == "images in the data set":
                reads.semilogx(x, 1000 * y, "o-", color=plots.COLORS["blue"])
            else:
                grows.plot(x / x[0], y / y[0], "o-", label=f"{name}: exponent {row['exponent']}")
        grows.set_xscale("log", base=2)
        grows.set_yscale("log", base=2)
        for axis in (grows.xaxis, grows.yaxis):
            axis.set_major_formatter("{x:g}")
        grows.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
        grows.set(title="a step of ours", xlabel="times as much", ylabel="times as long")
        reads.set(title="reading 8 pairs from disk", xlabel="images in the data set", ylabel="ms", ylim=(0, None))
        plots.save(figure, path)
        plt.close(figure)
