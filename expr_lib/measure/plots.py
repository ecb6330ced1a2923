"""The style of all figures of the course, legible from a distance and for people with colour vision deficiencies."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from expr_lib.facs import AU_NAMES, PRESENT_AT
from expr_lib.files import replace_file

INK = "#222222"
QUIET = "#8a8a8a"
COLORS = {  # Okabe & Ito, *Color Universal Design* (2008): distinct under every common colour deficiency
    "blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "vermillion": "#D55E00",
    "purple": "#CC79A7", "sky": "#56B4E9", "yellow": "#F0E442",
}  # fmt: skip
REGION_COLORS = {
    "brow": COLORS["blue"], "eye": COLORS["green"], "nose": COLORS["purple"],
    "cheek": COLORS["orange"], "mouth": COLORS["vermillion"],
}  # fmt: skip
"""One colour for each face region, the same in every figure."""

STYLE: dict[Any, Any] = {
    "font.size": 14, "axes.titlesize": 16, "axes.labelsize": 14, "xtick.labelsize": 12, "ytick.labelsize": 12,
    "legend.fontsize": 12, "figure.titlesize": 19, "figure.facecolor": "white", "savefig.facecolor": "white",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": QUIET, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#e6e6e6", "lines.linewidth": 2.2, "legend.frameon": False, "image.interpolation": "bicubic",
    "axes.prop_cycle": plt.cycler(color=list(COLORS.values())), "figure.dpi": 110, "savefig.dpi": 160,
}  # fmt: skip


def show_inline() -> None:
    """In a notebook, show figures in it, whatever the environment variable MPLBACKEND says; elsewhere do nothing."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and hasattr(shell, "kernel"):
        shell.run_line_magic("matplotlib", "inline")


show_inline()


@contextmanager
def style() -> Iterator[None]:
    """`with style(): ...` draws in the style of the course and then restores the settings of matplotlib."""
    with plt.rc_context(STYLE):
        yield
        interactive = plt.isinteractive()  # switched on by the backend of a notebook with the first figure
    matplotlib.interactive(interactive)  # otherwise the notebook would not show a second figure


def save(figure: Figure, path: str | Path, *, colors: int | None = None) -> Path:
    """Write a figure (PNG, SVG or PDF by its ending), whole or not at all; folders are created.

    `colors`, at most 256, halves the size of a PNG by a palette of this number of colours, with dithering.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    with style():
        figure.savefig(drawn, format=path.suffix.removeprefix(".") or "png", bbox_inches="tight", pad_inches=0.15)
    if colors:
        full = Image.open(drawn, formats=["PNG"]).convert("RGB")
        few = full.quantize(palette=full.quantize(colors, kmeans=2), dither=Image.Dither.FLOYDSTEINBERG)
        drawn = io.BytesIO()
        few.save(drawn, format="PNG", optimize=True)
    replace_file(path, drawn.getvalue())
    return path


def grid(
    images: ArrayLike,
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    note: str = "",
    cell: float = 1.35,
    column_colors: Sequence[str] = (),
) -> Figure:
    """Images in rows and columns, labelled on the left and above.

    `images` is (R, C, S, S, 3) uint8 or float in [0, 1]; `note` is a gray line under the picture; `cell` is the
    edge of one image in inches. Raises `ValueError` if the labels do not match the rows or columns.
    """
    images = np.asarray(images)
    if images.ndim != 5 or images.shape[-1] != 3:
        raise ValueError(f"images: found shape {images.shape}, expected (rows, columns, S, S, 3)")
    rows, columns = images.shape[:2]
    for name, labels, n in (("row_labels", row_labels, rows), ("column_labels", column_labels, columns)):
        if len(labels) not in (0, n):
            raise ValueError(f"{name}: found {len(labels)}, expected {n}")
    with style():
        figure = plt.figure(figsize=(columns * cell, rows * cell))
        axes, gap = figure.add_axes((0, 0, 1, 1)), 0.04  # labels are outside the axes; saving includes them
        for r in range(rows):
            for c in range(columns):
                axes.imshow(images[r, c], extent=(c + gap / 2, c + 1 - gap / 2, r + 1 - gap / 2, r + gap / 2))
        axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.set_xticks(np.arange(len(column_labels)) + 0.5, column_labels)
        axes.set_yticks(np.arange(len(row_labels)) + 0.5, row_labels)
        for label, color in zip(axes.get_xticklabels(), column_colors, strict=False):
            label.set_color(color)
        if title:
            axes.set_title(title, loc="left", pad=14, fontsize=19, fontweight="bold")
        if note:
            axes.annotate(note, (0, 0), (0, -10), "axes fraction", "offset points", va="top", color=QUIET, fontsize=12)
    return figure


def sheet(
    images: ArrayLike, labels: Sequence[str], *, columns: int, colors: Sequence[str] = (), title: str = ""
) -> Figure:  # fmt: skip
    """A contact sheet: images (n, S, S, 3), each with a label above it, in `columns` columns."""
    images = np.asarray(images)
    if len(labels) != len(images):
        raise ValueError(f"labels: found {len(labels)}, expected {len(images)}")
    rows = -(-len(images) // columns)
    with style():
        figure, axes = plt.subplots(
            rows, columns, figsize=(2.2 * columns, 2.2 * 1.17 * rows), squeeze=False, layout="constrained"
        )
        for k, axis in enumerate(axes.flat):
            axis.set_axis_off()
            if k < len(images):
                axis.imshow(images[k])
                axis.set_title(labels[k], fontsize=12, color=colors[k] if colors else INK)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def compare(
    values: Mapping[str, float],
    *,
    label: str,
    title: str = "",
    limits: tuple[float, float] = (0.0, 1.0),
    intervals: Mapping[str, tuple[float, float]] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Horizontal bars with their numbers, the first in colour and those for comparison in gray.

    `intervals` adds a whisker from low to high; `label` names the axis.
    """
    with style():
        axes = axes or plt.subplots(figsize=(8, 0.55 * len(values) + 1.2))[1]
        names, numbers = list(values), np.array(list(values.values()), float)
        axes.barh(names, numbers, height=0.62, color=[COLORS["blue"]] + ["#b9b9b9"] * (len(names) - 1))
        for name, (low, high) in (intervals or {}).items():
            axes.plot([low, high], [name, name], color=INK, linewidth=2)
        for name, number in zip(names, numbers, strict=True):  # right of bar and whisker, but inside the axes
            right = min(max(0.0, number, *(intervals or {}).get(name, ()), limits[0]), limits[1])
            axes.annotate(f"{number:.2f}", (right, name), (6, 0), textcoords="offset points", va="center")
        axes.set(xlim=limits, xlabel=label, title=title)
        axes.set_ylim(len(names) - 0.5, -0.5)  # the first on top
        axes.grid(axis="y", visible=False)
    return axes


def swaps(
    a: ArrayLike, b: ArrayLike, swapped: ArrayLike, truth: ArrayLike, au_b: ArrayLike, rest: ArrayLike | None = None
) -> Figure:
    """A figure of swaps: a, b, a with the expression of b, and the true answer.

    Images are (n, S, S, 3) uint8; `rest`, the faces at rest of a, is one more row. `au_b` (n, n_aus) in [0, 5], in
    the order of `AU_NAMES`, labels the columns.
    """
    rows = {"a": a, "b": b, "a with the\nexpression of b": swapped, "the true answer": truth}
    if rest is not None:
        rows["a at rest,\nby the network"] = rest
    return grid(
        np.stack([np.asarray(x) for x in rows.values()]),  # (4 or 5, n, S, S, 3)
        row_labels=list(rows),
        column_labels=[strongest(au) for au in np.asarray(au_b)],
        title="Two faces exchange expressions",
        note="Above each column: the strongest action units of b. None of these people were in the training data.",
    )


def strongest(au: np.ndarray) -> str:
    """The three strongest present AUs of one expression (n_aus,): "AU 6+12+25", or "neutral"."""
    order = sorted((k for k in np.argsort(-au)[:3] if au[k] >= PRESENT_AT), key=int)
    return "AU " + "+".join(AU_NAMES[k].removeprefix("AU") for k in order) if order else "neutral"
