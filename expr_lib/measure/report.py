"""Reports of the results of `evaluate`: further tables, and figures."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from expr_lib.faces.plan import FacePlan
from expr_lib.faces.render import Renderer
from expr_lib.facs import ACTION_UNITS, AU_NAMES
from expr_lib.files import replace_file
from expr_lib.measure import plots
from expr_lib.measure.cards import cell, markdown_table
from expr_lib.measure.evaluate import MEASURES, STRATA, UNDEFINED
from expr_lib.measure.metrics import bootstrap
from expr_lib.model import Swapper
from expr_lib.swap import rest_images, swap_images

SHOWN = {"ours": plots.COLORS["blue"], "copy-input": "#c4c4c4", "true render": plots.COLORS["orange"]}
"""The rows of the table that the figures compare, and their colours."""
GALLERIES = ("best", "median", "worst")


def write_report(
    path: Path, results: dict[str, Any], pictures: Path | None, swapper: Swapper, plan: FacePlan, renderer: Renderer
) -> list[Path]:
    """Write all tables to a Markdown file and the figures to a folder, if one is given; returns the files."""
    files = {}
    if pictures is not None:
        for (name, title), figure in figures(results, swapper, plan, renderer).items():
            colors = 256 if name.startswith("gallery") else None  # images of faces are large
            files[title] = plots.save(figure, pictures / f"{name}.png", colors=colors)
            plt.close(figure)
    links = [f"![{title}]({Path(os.path.relpath(file, path.parent)).as_posix()})" for title, file in files.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, ("\n\n".join([tables(results), *links]) + "\n").encode())
    return [path, *files.values()]


def figures(
    results: dict[str, Any], swapper: Swapper, plan: FacePlan, renderer: Renderer
) -> dict[tuple[str, str], Figure]:
    """{(file name, title): figure} for everything that the results contain."""
    person = plan.subject.numpy()[[swap["a"] for swap in results["swaps"]]]
    drawn = {
        ("transfer", "Transfer against expression distance and pose gap"): transfer(results, person),
        ("per-au", "Each action unit: ours, copy-input, true render"): per_au(results),
    }
    if results["cross_talk"]:
        drawn["cross-talk", "One action unit moved alone: what else moves?"] = cross_talk(results)
    for which, swaps in ranked(results["swaps"]).items():
        drawn[f"gallery-{which}", f"The {which} swaps"] = gallery(which, swaps, swapper, plan, renderer)
    return drawn


# -- tables ----------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> str:
    """All of `results` except the single swaps, in Markdown: in total, by stratum and by action unit."""
    parts = [f"# {results['about'].get('checkpoint', 'Results')}", markdown_table(results)]
    if any(results["strata"].values()):
        parts.append(strata_table(results))
    parts.append(au_table(results))
    if talk := results["cross_talk"]:
        lines = ["| one AU moved alone | network | true render |", "|---|---|---|"]
        for name, what in {
            "others": "each other AU, as a share of the moved one",
            "largest": "the other AU that changes most",
            "monotone": "moves that go the right way and never back",
            "steps_back": "steps that go back",
        }.items():
            lines.append(f"| {what} | {cell(talk['network'][name], 2)} | {cell(talk['true render'][name], 2)} |")
        parts += ["## Cross-talk", "\n".join(lines)]
    if express := results.get("by_numbers"):
        parts.append(numbers_table(express))
    return "\n\n".join(parts)


def numbers_table(express: dict[str, Any]) -> str:
    """Editing by numbers: what the judge reads at 0, 1, ..., 5 of each action unit, in Markdown."""
    lines = [
        "## Editing by numbers",
        "",
        "| requested | " + " | ".join("0 1 2 3 4 5".split()) + " | each other AU | truth |",
    ]
    lines.append("|---" * 9 + "|")
    for unit, found in express["network"].items():
        true = express["true render"][unit]
        shares = ["–" if x["others"] is None else f"{x['others']:.2f}" for x in (found, true)]
        reads = [f"{x:.2f}" for x in found["read"]]
        lines.append("| " + " | ".join([unit + " ↑" * found["monotone"], *reads, *shares]) + " |")
    rising = sum(found["monotone"] for found in express["network"].values())
    clean = sum(x["others"] is not None and x["others"] < 0.15 for x in express["network"].values())
    lines += [
        "",
        f"Intensity that the judge reads, median over {express['n_faces']} held-out faces, and the mean change of each "
        "other AU as a share of the change of the requested one, in the network and in true renders. ↑: every number "
        f"gives more than the one before it ({rising} of {len(AU_NAMES)}). "
        f"Others below 0.15: {clean} of {len(AU_NAMES)}.",
    ]
    return "\n".join(lines)


def strata_table(results: dict[str, Any]) -> str:
    """All measures of our swaps in each stratum, in Markdown."""
    lines = ["## Ours, by expression distance and pose gap", ""]
    lines.append("| | swaps | " + " | ".join(f"`{name}` {better}" for name, (better, _) in MEASURES.items()) + " |")
    lines.append("|---" * (len(MEASURES) + 2) + "|")
    for name, parts in results["strata"].items():
        for part in parts:
            ours = part["rows"]["ours"]
            cells = [cell(ours.get(measure, UNDEFINED), digits) for measure, (_, digits) in MEASURES.items()]
            label = f"{name.replace('_', ' ')} {part['low']:.1f} to {part['high']:.1f}"
            lines.append("| " + " | ".join([label, str(part["n_swaps"]), *cells]) + " |")
    lines += ["", " ".join(f"{name.replace('_', ' ').capitalize()}: {what}." for name, what in STRATA.items())]
    return "\n".join(lines)


def au_table(results: dict[str, Any]) -> str:
    """Measures of our swaps for each action unit, with copy-input and the true render, in Markdown."""
    leak, talk = results["leaks"], results["cross_talk"]
    head = ["", "`au_icc`", "copy-input", "true render", "`au_f1`", "true render", "`own_expression_left`"]
    head += ["`leak_au`"] * bool(leak) + ["moved alone"] * bool(talk)
    lines = ["## Each action unit", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    ours, copied, true = (results["per_au"][row] for row in SHOWN)
    for unit in ACTION_UNITS:
        name = unit.name
        values = [ours[name]["au_icc"], copied[name]["au_icc"], true[name]["au_icc"]]
        values += [ours[name]["au_f1"], true[name]["au_f1"], ours[name]["own_expression_left"]]
        cells = [cell(value, 2) for value in values + ([leak["per_au"][name]] if leak else [])]
        if talk:
            moved = (talk[row]["moved"][name] for row in ("network", "true render"))
            cells.append(" of ".join("–" if x is None else f"{x:.2f}" for x in moved))
        lines.append("| " + " | ".join([f"{name} {unit.muscle_action}", *cells]) + " |")
    if talk:
        lines += [
            "",
            "Moved alone: the judged change as a share of what was asked for; after “of” that in true renders.",
        ]
    return "\n".join(lines)


# -- figures ---------------------------------------------------------------------------------------------------------


def transfer(results: dict[str, Any], person: np.ndarray, *, bins: int = 8) -> Figure:
    """`transfer_score` against expression distance and pose gap: a dot per swap, a line over parts of equal size.

    `person` (2n,) is the person that each swap shows, over whom the intervals are computed. The line shows the
    quotient of the means, as in the table.
    """
    swaps = {name: np.array([s[name] for s in results["swaps"]], float) for name in (*STRATA, "transfer_score", "way")}
    usable = np.isfinite(swaps["transfer_score"])
    x = {name: values[usable] for name, values in swaps.items()}
    with plots.style():
        figure, axes = plt.subplots(1, 2, figsize=(15, 5.6), layout="constrained", sharey=True)
        for axis, name in zip(axes, STRATA, strict=True):
            axis.axhline(1, color=plots.INK, linewidth=1.4)
            axis.axhline(0, color=plots.QUIET, linewidth=1.4)
            dots = axis.plot(
                x[name], x["transfer_score"].clip(-0.6, 1.15), ".", color="#9ec9e2", markersize=3, zorder=1
            )
            dots[0].set_rasterized(True)
            middle, value, low, high = [], [], [], []
            for part in np.array_split(x[name].argsort(kind="stable"), min(bins, max(1, len(x[name]) // 10))):
                way = torch.from_numpy(x["way"][part])
                gain = torch.from_numpy(x["transfer_score"][part]) * way

                def score(i: torch.Tensor, gain: torch.Tensor = gain, way: torch.Tensor = way) -> torch.Tensor:
                    return gain[i].sum() / way[i].sum()

                ends = bootstrap(score, person[usable][part], n_resamples=300)
                middle.append(np.median(x[name][part]))
                value.append(float(score(torch.arange(len(part)))))
                low.append(float(ends[0]))
                high.append(float(ends[1]))
            axis.fill_between(middle, low, high, color=plots.COLORS["blue"], alpha=0.25, linewidth=0)
            axis.plot(middle, value, "o-", color=plots.COLORS["blue"], markersize=8)
            axis.set(xlabel=STRATA[name], ylim=(-0.65, 1.2), xlim=(0, None))
        axes[0].set_ylabel("transfer_score")
        right = axes[0].get_xlim()[1]
        for y, text, up in ((1, "the true answer", 5), (-0.65, "0: nothing transferred (copy-input)", 8)):
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}  # above the dots
            axes[0].annotate(text, (right, y), (-6, up), textcoords="offset points", ha="right", fontsize=13, bbox=box)
        figure.suptitle("How much of the expression arrives?", x=0.01, ha="left", fontweight="bold")
    return figure


def per_au(results: dict[str, Any]) -> Figure:
    """Bars for each action unit in two panels: the expression of b, and the remaining expression of a."""
    panels = {
        "au_icc": "Is b's expression read? au_icc, 1 is perfect",
        "own_expression_left": "Is a's own expression still read? own_expression_left, 0 is perfect",
    }
    place, width = np.arange(len(AU_NAMES)), 0.27
    with plots.style():
        figure, axes = plt.subplots(2, 1, figsize=(16, 9), layout="constrained", sharex=True)
        for axis, (measure, title) in zip(axes, panels.items(), strict=True):
            for k, (row, color) in enumerate(SHOWN.items()):
                found = [results["per_au"][row][name][measure] for name in AU_NAMES]
                value, low, high = (np.array([f[key] for f in found], float) for key in ("value", "low", "high"))
                x = place + (k - 1) * width
                axis.bar(x, value, width * 0.94, color=color, label=row)
                axis.vlines(x, low, high, color=plots.INK, linewidth=1.5)
            axis.axhline(0, color=plots.QUIET, linewidth=1.2)
            axis.set_title(title, loc="left")
            axis.set_ylim(None, 1.05)
            axis.grid(axis="x", visible=False)
            axis.margins(x=0.01)
        axes[0].legend(ncols=3, loc="lower left", bbox_to_anchor=(0.6, 1.0), borderaxespad=0)
        axes[1].set_xticks(place, [f"{u.name} {u.muscle_action}".replace(" ", "\n") for u in ACTION_UNITS])
        figure.suptitle("Each action unit", x=0.01, ha="left", fontweight="bold")
    return figure


def cross_talk(results: dict[str, Any]) -> Figure:
    """Effects of moving one action unit alone, on the other units and on itself, in the network and in true renders."""
    talk = results["cross_talk"]
    titles = {"network": "The network", "true render": "The true render"}
    with plots.style():
        figure = plt.figure(figsize=(21, 7.6), layout="constrained")
        axes = figure.subplots(1, 3, width_ratios=(1, 1, 0.72))
        for axis, (name, title) in zip(axes, titles.items(), strict=False):
            shares = np.array(talk[name]["matrix"], float)  # (n_aus, n_aus); NaN if nothing moved
            colors = plt.get_cmap("PuOr_r").with_extremes(bad="#dddddd")
            shown = axis.imshow(shares, cmap=colors, vmin=-1, vmax=1, interpolation="nearest")
            axis.set_xticks(range(len(AU_NAMES)), AU_NAMES, rotation=90)
            axis.set_yticks(range(len(AU_NAMES)), AU_NAMES)
            axis.tick_params(length=0)
            axis.grid(False)
            axis.spines[:].set_visible(False)
            others = talk[name]["others"]["value"]
            number = "no AU moves" if others is None else f"each other AU moves by {100 * others:.0f} %"
            axis.set_title(f"{title}: {number}", loc="left")
            axis.set_xlabel("what the judge reads")
        axes[0].set_ylabel("what is moved, alone")
        figure.colorbar(shown, ax=axes[:2], shrink=0.75, label="change, as a share of the moved AU's", pad=0.01)
        _curves(axes[2], talk)
        figure.suptitle("One action unit moved alone", x=0.01, ha="left", fontweight="bold")
    return figure


def _curves(axis: Axes, talk: dict[str, Any]) -> None:
    looks = {
        "network": ("o-", SHOWN["ours"], "the network"),
        "true render": ("s--", SHOWN["true render"], "true render"),
    }
    for name, (line, color, label) in looks.items():
        found = talk[name]["curve"]
        value, low, high = (np.array([f[key] for f in found], float) for key in ("value", "low", "high"))
        axis.plot(talk["weights"], value, line, color=color, label=label, markersize=8)
        axis.fill_between(talk["weights"], low, high, color=color, alpha=0.25, linewidth=0)
    axis.plot([0, 1], [0, 1], ":", color=plots.QUIET, label="what was asked for")
    axis.set(xlabel="weight, from a (0) to b (1)", ylabel="judged change over the change from a to b, median")
    axis.set_title(f"It moves on and never back: {_percent(talk['network']['monotone'])}", loc="left")
    axis.legend()


def _percent(estimate: dict[str, float | None]) -> str:
    return "–" if estimate["value"] is None else f"{100 * estimate['value']:.0f} %"


def ranked(swaps: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The ten best, median and worst swaps by `gain`, best first, of the half with the most different expressions.

    If two expressions look alike, the denominator of the gain is almost 0, so these swaps are not ranked.
    """
    usable = [swap for swap in swaps if swap["gain"] is not None]
    middle = np.median([swap["copy"] for swap in usable]) if usable else 0.0
    order = sorted((s for s in usable if s["copy"] >= middle), key=lambda s: -s["gain"])
    start = max(0, (len(order) - 10) // 2)
    return dict(zip(GALLERIES, (order[:10], order[start : start + 10], order[-10:]), strict=True))


def gallery(which: str, swaps: list[dict[str, Any]], swapper: Swapper, plan: FacePlan, renderer: Renderer) -> Figure:
    """A figure of swaps, from top to bottom: a, b, a with the expression of b, the true answer.

    Swaps of the moving generator have 256 pixels and one more row, the face at rest.
    """
    moves = isinstance(swapper, Swapper) and swapper.config.generator == "moved"
    if moves:
        plan = replace(plan, size=256)
    a, b = np.array([(swap["a"], swap["b"]) for swap in swaps]).T
    (image_a, _), (image_b, _) = plan.render(renderer, a), plan.render(renderer, b)
    truth, _ = plan.render(renderer, a, au_rows=b)
    rows: dict[str, Any] = {"a": image_a, "b": image_b}
    rows |= {"a with the\nexpression of b": swap_images(swapper, image_a, image_b)[0], "the true answer": truth}
    if moves:
        rows["a at rest,\nby the network"] = rest_images(swapper, image_a)
    return plots.grid(
        np.stack([np.asarray(x.cpu() if isinstance(x, torch.Tensor) else x) for x in rows.values()]),
        row_labels=list(rows),
        column_labels=[f"{swap['gain']:.2f}" for swap in swaps],
        title=f"The {which} {len(swaps)}",
        note="Above each column: gain.\nOf the half of the pairs whose expressions look least alike.",
        cell=0.62 if moves else 0.72,
    )
