"""Parts of the widgets: pictures, sliders, bars, thumbnails, and encoded faces.

Needs the extra `course`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from expr_lib.datasets import to_float, to_uint8
from expr_lib.faces.plan import FacePlan
from expr_lib.faces.render import Renderer
from expr_lib.facs import ACTION_UNITS, AU_NAMES, MAX_INTENSITY
from expr_lib.measure.judges import AUJudge
from expr_lib.measure.plots import COLORS, INK, QUIET, REGION_COLORS
from expr_lib.model import Swapper, mix

ROW = 25  # pixels from one action unit to the next, in sliders and bars
AU_COLORS = [REGION_COLORS[unit.region] for unit in ACTION_UNITS]
STYLE = f"""<style>
.expr img.widget-image {{ border-radius: 4px; background: #ddd; aspect-ratio: 1; height: auto }}
.expr .widget-label {{ color: var(--jp-ui-font-color1, {INK}) }}
.expr-to-b .noUi-target {{ background-image: linear-gradient(to right, transparent calc(var(--b) - 1px),
  {INK} calc(var(--b) - 1px), {INK} calc(var(--b) + 1px), transparent calc(var(--b) + 1px)) }}
.expr-title {{ font-weight: bold }}
.expr-stay {{ position: sticky; top: 4px; align-self: flex-start; z-index: 1; overflow: visible }}
.expr-row {{ height: {ROW - 1}px; margin: 0 0 1px 0 }}
.expr button:focus-visible {{ outline: 3px solid {COLORS["orange"]}; outline-offset: 2px; z-index: 3 }}
.expr-faces > div {{ display: flex; flex-wrap: wrap }}
.expr-faces .widget-toggle-button {{ height: 58px; width: 58px; font-size: 0; margin: 2px; background-size: cover;
  border-radius: 4px; position: relative }}
.expr-faces .widget-toggle-button.mod-active {{ box-shadow: 0 0 0 3px {COLORS["blue"]} }}
.expr-map {{ position: relative; overflow: visible; border: 1px solid {QUIET}; border-radius: 4px; background: white }}
.expr-map .widget-toggle-button {{ position: absolute; width: 13px; height: 13px; min-width: 0; padding: 0;
  margin: -6px; border-radius: 50%; font-size: 0; border: 1px solid white }}
.expr-map .widget-toggle-button.mod-active {{ transform: scale(1.7); border-color: {INK}; z-index: 2;
  box-shadow: 0 0 0 2px white, 0 0 0 4px {INK} }}
</style>"""


def encode_image(image: Tensor | np.ndarray) -> bytes:
    """uint8 (S, S, 3) -> the bytes of a PNG file; fast rather than small, since it is shown once."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def data_url(content: bytes, kind: str) -> str:
    """The bytes of an image file -> a data URL with them."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def picture(caption: str, edge: int) -> tuple[widgets.Image, widgets.VBox]:
    """An image, as wide as the space allows and at most `edge` pixels, and a box with the caption and the image."""
    image = widgets.Image(format="png", layout=widgets.Layout(width="100%", margin="0"))
    label = widgets.Label(caption, layout=widgets.Layout(height="22px"))
    layout = widgets.Layout(margin="0 8px 4px 0", flex="1 1 110px", min_width="110px", max_width=f"{edge}px")
    return image, widgets.VBox([label, image], layout=layout)


def au_sliders(high: float, step: float, form: str, draw: Callable[[Any], None]) -> list[widgets.FloatSlider]:
    """One slider for each action unit from 0 to `high`, in the colour of its region."""
    sliders = [
        widgets.FloatSlider(
            min=0.0, max=high, step=step, readout_format=form, description=f"{unit.name} {unit.muscle_action}",
            style={"description_width": "180px", "handle_color": color}, layout=widgets.Layout(width="400px"),
            tooltip=f"{unit.name} {unit.muscle_action} ({unit.region})",
        )
        for unit, color in zip(ACTION_UNITS, AU_COLORS, strict=True)
    ]  # fmt: skip
    for slider in sliders:
        slider.add_class("expr-row")
        slider.observe(draw, "value")
    return sliders


def bars(asked: Tensor, judged: Tensor, ceiling: Tensor, *, names: bool) -> str:
    """AU intensities (n_aus,) in [0, 5] as SVG: those that the AU judge reads from answer (colour) and truth (gray).

    A black line marks the requested intensity. With `names`, the names are written on the left.
    """
    left, scale, top = (70 if names else 4), 56.0, ROW  # scale: pixels to an intensity
    width, height = left + int(MAX_INTENSITY * scale) + 14, top + ROW * len(AU_NAMES)
    ink = f"var(--jp-ui-font-color1, {INK})"
    parts = [f'<svg width="{width}" height="{height}" role="img" aria-label="action units" style="display: block">']
    for k, letter in enumerate(" ABCDE"):
        x = left + k * scale
        parts.append(f'<path d="M{x} {top - 4}V{height}" stroke="#ccc"/>')
        parts.append(
            f'<text x="{x}" y="15" fill="{ink}" font-size="13" text-anchor="middle">{letter.strip() or 0}</text>'
        )
    for k, (name, color) in enumerate(zip(AU_NAMES, AU_COLORS, strict=True)):
        y, (want, got, true) = top + k * ROW, [float(x[k].clamp(0, MAX_INTENSITY)) for x in (asked, judged, ceiling)]
        parts.append(f"<g><title>{name}: requested {want:.1f}, read {got:.1f}, in the true render {true:.1f}</title>")
        if names:
            parts.append(
                f'<text x="{left - 8}" y="{y + 17}" fill="{ink}" font-size="14" text-anchor="end">{name}</text>'
            )
        parts.append(f'<rect x="{left}" y="{y + 3}" width="{true * scale:.1f}" height="19" fill="#c9c9c9"/>')
        parts.append(f'<rect x="{left}" y="{y + 8}" width="{got * scale:.1f}" height="9" fill="{color}"/>')
        parts.append(f'<path d="M{left + want * scale:.1f} {y + 1}v23" stroke="{ink}" stroke-width="3"/></g>')
    return "".join(parts) + "</svg>"


LEGEND = (
    '<div style="line-height: 1.4">Predictions of a judge that takes no part in training, from 0 (absent) to E:<br>'
    '<span style="color: #D55E00">▬</span> in the network’s output &nbsp; <span style="color: #aaa">■</span> in the '
    "true render &nbsp; <b>|</b> requested</div>"
)


def choice(labels: Sequence[str], looks: Sequence[str], kind: str) -> tuple[widgets.ToggleButtons, widgets.HTML]:
    """Buttons of which one is chosen, each with its own CSS; the text remains for screen readers and as a tooltip."""
    buttons = widgets.ToggleButtons(options=list(zip(labels, range(len(labels)), strict=True)), tooltips=list(labels))
    name = f"expr-{buttons.model_id[:12]}"
    buttons.add_class(kind)
    buttons.add_class(name)
    rules = [f".{name} .widget-toggle-button:nth-child({k}) {{ {look} }}" for k, look in enumerate(looks, 1)]
    return buttons, widgets.HTML("<style>" + "\n".join(rules) + "</style>", layout=widgets.Layout(display="none"))


def titled(title: str, *children: widgets.Widget) -> widgets.VBox:
    """Widgets under a title."""
    label = widgets.Label(title)
    label.add_class("expr-title")
    return widgets.VBox([label, *children], layout=widgets.Layout(margin="0 16px 6px 0"))


def page(*children: widgets.Widget) -> list[widgets.Widget]:
    """The children of a widget of this module: rows that wrap if the window is narrow."""
    return [widgets.HTML(STYLE, layout=widgets.Layout(display="none")), *children]


def row(*children: widgets.Widget) -> widgets.HBox:
    """Widgets side by side, wrapped if the window is narrow."""
    return widgets.HBox(list(children), layout=widgets.Layout(flex_flow="row wrap"))


class EncodedFaces:
    """The rows of a plan with their pixels and features, computed once, and the true render of any mixture.

    `plan` has any image size for a moving generator, and that of the checkpoint for a drawing one. It should be short,
    because every row becomes a thumbnail. `rest` (N, S, S, 3) uint8 are the faces at rest, None for a drawing
    generator. Raises `ValueError` for another image size.
    """

    @torch.inference_mode()
    def __init__(self, swapper: Swapper, plan: FacePlan, renderer: Renderer, judge: AUJudge) -> None:
        if swapper.config.generator == "drawn" and plan.size != swapper.config.size:
            raise ValueError(f"plan: found size {plan.size}, expected {swapper.config.size}, as in the checkpoint")
        self.swapper, self.plan, self.renderer, self.judge = swapper, plan, renderer, judge
        self.device = next(swapper.parameters()).device
        self.pixels = plan.render(renderer, range(len(plan)))[0].cpu()  # (N, S, S, 3) uint8
        image = to_float(self.pixels.to(self.device)).permute(0, 3, 1, 2)  # (N, 3, S, S)
        self.f_f, self.f_r = swapper.encode(image)  # of N faces, (N, n, d)
        rest = swapper.rest(self.f_f)
        self.rest = None if rest is None else to_uint8(rest).permute(0, 2, 3, 1).cpu()
        self.labels = [f"face {k + 1}, person {int(who) + 1}" for k, who in enumerate(plan.subject)]

    def lively(self) -> tuple[int, int]:
        """The face that is nearest to rest, and the one whose expression differs most from it."""
        a = int(self.plan.au.sum(1).argmin())
        return a, int((self.plan.au - self.plan.au[a]).abs().sum(1).argmax())

    def au(self, a: int, b: int, weights: Tensor) -> Tensor:
        """The AUs (B, n) of a mixture with weights (B, n) from a (0) to b (1), clamped to [0, 5]."""
        return torch.lerp(self.plan.au[[a]], self.plan.au[[b]], weights).clamp(0, MAX_INTENSITY)

    @torch.inference_mode()
    def mixed(self, a: int, b: int, weights: Tensor) -> Tensor:
        """The network's mixture of faces a and b with weights (B, n), from a (0) to b (1) -> (B, S, S, 3) uint8."""
        n = len(weights)
        f_r = mix(self.f_r[[a] * n], self.f_r[[b] * n], weights.to(self.device))
        return to_uint8(self.swapper.generate(self.f_f[[a] * n], f_r)).permute(0, 2, 3, 1).cpu()

    @torch.inference_mode()
    def truth(self, a: int, b: int, weights: Tensor) -> Tensor:
        """The true render of a mixture with weights (B, n) -> (B, S, S, 3) uint8."""
        plan = replace(self.plan, au=self.au(a, b, weights))
        return plan.render(self.renderer, [a] * len(weights), au_rows=range(len(weights)))[0].cpu()

    @torch.inference_mode()
    def read(self, images: Tensor) -> Tensor:
        """The intensities that the AU judge reads from images (B, S, S, 3) uint8 -> (B, n) in [0, 5]."""
        return self.judge(to_float(images.to(self.device)).permute(0, 3, 1, 2)).cpu()


def two_of(faces: EncodedFaces) -> tuple[widgets.ToggleButtons, widgets.ToggleButtons, widgets.HBox]:
    """Thumbnails to choose a and b from, with a lively pair at first, and the row that shows both."""
    small = [np.asarray(Image.fromarray(image.numpy()).resize((64, 64))) for image in faces.pixels]
    looks = [f"background-image: url({data_url(encode_image(image), 'png')})" for image in small]
    (a, css_a), (b, css_b) = (choice(faces.labels, looks, "expr-faces") for _ in "ab")
    a.value, b.value = faces.lively()
    return a, b, row(titled("Face a", a, css_a), titled("Face b", b, css_b))


def marked(image: Image.Image) -> Image.Image:
    """The image with the word "synthetic" in its lower left corner, for pictures that leave this page."""
    ImageDraw.Draw(image).text((4, image.height - 4), "synthetic", "white", anchor="lb", stroke_width=1,
                               stroke_fill="black")  # fmt: skip
    return image
