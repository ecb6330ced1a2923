"""Faces under your hands: four widgets for JupyterLab and Voila, each drawn anew whenever something is moved.

A slider waits in the browser until the kernel has drawn its last value, and then sends only its newest one: what came
in between is dropped (ipywidgets does that). So every handler here draws at once, and once, from features that were
encoded when the faces were picked. Needs the extra ``course``.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from expr_lib.datasets import to_float, to_uint8
from expr_lib.faces.build import SAMPLE_EXPRESSIONS
from expr_lib.faces.plan import FacePlan
from expr_lib.faces.render import Renderer
from expr_lib.facs import ACTION_UNITS, AU_NAMES, MAX_INTENSITY
from expr_lib.measure.judges import AUJudge
from expr_lib.measure.plots import COLORS, INK, QUIET, REGION_COLORS
from expr_lib.model import Swapper, mix

ROW = 25  # pixels from one action unit to the next, in sliders and bars alike
AU_COLORS = [REGION_COLORS[unit.region] for unit in ACTION_UNITS]
STYLE = f"""<style>
.expr img.widget-image {{ border-radius: 4px; background: #ddd }}
.expr .widget-label {{ color: var(--jp-ui-font-color1, {INK}) }}
.expr-title {{ font-weight: bold }}
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


# -- parts ---------------------------------------------------------------------------------------------------------


def encode_image(image: Tensor | np.ndarray, kind: str = "png") -> bytes:
    """uint8 (S, S, 3) -> the bytes of an image file; quickly, as it is shown once."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, kind, compress_level=1)
    return buffer.getvalue()


def data_url(content: bytes, kind: str) -> str:
    """The bytes of an image file -> an address that holds them."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def picture(caption: str, edge: int) -> tuple[widgets.Image, widgets.VBox]:
    """An image ``edge`` pixels wide on the screen, and the same with its caption above it."""
    image = widgets.Image(format="png", width=edge, height=edge)
    label = widgets.Label(caption, layout=widgets.Layout(height="22px"))
    return image, widgets.VBox([label, image], layout=widgets.Layout(margin="0 10px 4px 0", flex="0 0 auto"))


def au_sliders(high: float, step: float, form: str, draw: Callable[[Any], None]) -> list[widgets.FloatSlider]:
    """One slider for each action unit from 0 to ``high``, in the colour of its region."""
    sliders = [
        widgets.FloatSlider(
            min=0.0, max=high, step=step, readout_format=form, description=f"{unit.name} {unit.muscle_action}",
            style={"description_width": "180px", "handle_color": color}, layout=widgets.Layout(width="440px"),
            tooltip=f"{unit.name} {unit.muscle_action} ({unit.region})",
        )
        for unit, color in zip(ACTION_UNITS, AU_COLORS, strict=True)
    ]  # fmt: skip
    for slider in sliders:
        slider.add_class("expr-row")
        slider.observe(draw, "value")
    return sliders


def bars(asked: Tensor, judged: Tensor, ceiling: Tensor, *, names: bool) -> str:
    """AU intensities (n_aus,) in [0, 5] as SVG: what the AU judge reads in the answer (colour), in the truth (gray).

    A black line marks what was asked for. ``names`` writes the names on the left, where no slider does.
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
        parts.append(f"<g><title>{name}: asked for {want:.1f}, read {got:.1f}, in the true render {true:.1f}</title>")
        if names:
            parts.append(
                f'<text x="{left - 8}" y="{y + 17}" fill="{ink}" font-size="14" text-anchor="end">{name}</text>'
            )
        parts.append(f'<rect x="{left}" y="{y + 3}" width="{true * scale:.1f}" height="19" fill="#c9c9c9"/>')
        parts.append(f'<rect x="{left}" y="{y + 8}" width="{got * scale:.1f}" height="9" fill="{color}"/>')
        parts.append(f'<path d="M{left + want * scale:.1f} {y + 1}v23" stroke="{ink}" stroke-width="3"/></g>')
    return "".join(parts) + "</svg>"


LEGEND = (
    '<div style="line-height: 1.4">What a judge reads that no training has seen, from 0 (absent) to E:<br>'
    '<span style="color: #D55E00">▬</span> in the network’s picture &nbsp; <span style="color: #aaa">■</span> in the '
    "true render &nbsp; <b>|</b> what was asked for</div>"
)


def choice(labels: Sequence[str], looks: Sequence[str], kind: str) -> tuple[widgets.ToggleButtons, widgets.HTML]:
    """Buttons of which one is chosen, each with CSS of its own; text stays for screen readers and as a tooltip."""
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
    """What a widget of this module is made of: rows that wrap where the window is narrow."""
    return [widgets.HTML(STYLE, layout=widgets.Layout(display="none")), *children]


def row(*children: widgets.Widget) -> widgets.HBox:
    """Side by side, as far as there is room."""
    return widgets.HBox(list(children), layout=widgets.Layout(flex_flow="row wrap"))


@contextmanager
def all_at_once(widget: FaceExplorer | LatentMixer) -> Iterator[None]:
    """Set many of its sliders, and draw once."""
    widget.still = True
    try:
        yield
    finally:
        widget.still = False
    widget.draw()


class Faces:
    """The rows of a plan as the network takes them: pixels and features, made once, and the truth of any mixture.

    ``plan`` has any size for a moving generator, and the checkpoint's own for a drawing one; keep it short, every row
    becomes a thumbnail.
    """

    @torch.inference_mode()
    def __init__(self, swapper: Swapper, plan: FacePlan, renderer: Renderer, judge: AUJudge) -> None:
        if swapper.config.generator == "drawn" and plan.size != swapper.config.size:
            raise ValueError(f"plan: found size {plan.size}, expected {swapper.config.size}, the checkpoint's")
        self.swapper, self.plan, self.renderer, self.judge = swapper, plan, renderer, judge
        self.device = next(swapper.parameters()).device
        self.pixels = plan.render(renderer, range(len(plan)))[0].cpu()  # (N, S, S, 3) uint8
        image = to_float(self.pixels.to(self.device)).permute(0, 3, 1, 2)  # (N, 3, S, S)
        self.f_f, self.f_r = swapper.encode(image)  # (N, C, S/4, S/4), (N, n, d)
        self.labels = [f"face {k + 1}, person {int(who) + 1}" for k, who in enumerate(plan.subject)]

    def au(self, a: int, b: int, weights: Tensor) -> Tensor:
        """The AUs of that mixture, weights (B, n) from a (0) to b (1): (B, n), as far as [0, 5] goes."""
        return torch.lerp(self.plan.au[[a]], self.plan.au[[b]], weights).clamp(0, MAX_INTENSITY)

    @torch.inference_mode()
    def mixed(self, a: int, b: int, weights: Tensor) -> Tensor:
        """The network's picture of face a with each AU moved towards b: weights (B, n) -> (B, S, S, 3) uint8."""
        n = len(weights)
        f_r = mix(self.f_r[[a] * n], self.f_r[[b] * n], weights.to(self.device))
        return to_uint8(self.swapper.generate(self.f_f[[a] * n], f_r)).permute(0, 2, 3, 1).cpu()

    @torch.inference_mode()
    def truth(self, a: int, b: int, weights: Tensor) -> Tensor:
        """The true render of that mixture: weights (B, n) -> (B, S, S, 3) uint8."""
        plan = replace(self.plan, au=self.au(a, b, weights))
        return plan.render(self.renderer, [a] * len(weights), au_rows=range(len(weights)))[0].cpu()

    @torch.inference_mode()
    def read(self, images: Tensor) -> Tensor:
        """What the AU judge reads in images (B, S, S, 3) uint8: (B, n) in [0, 5]."""
        return self.judge(to_float(images.to(self.device)).permute(0, 3, 1, 2)).cpu()


def two_of(faces: Faces) -> tuple[widgets.ToggleButtons, widgets.ToggleButtons, widgets.HBox]:
    """Thumbnails to pick a from, and b, at first the first and the last; and the row that shows both."""
    looks = [f"background-image: url({data_url(encode_image(image), 'png')})" for image in faces.pixels]
    (a, css_a), (b, css_b) = (choice(faces.labels, looks, "expr-faces") for _ in "ab")
    a.value, b.value = 0, len(faces.labels) - 1
    return a, b, row(titled("Face a", a, css_a), titled("Face b", b, css_b))


# -- the widgets ---------------------------------------------------------------------------------------------------


class FaceExplorer(widgets.VBox):
    """The people of a plan, with every action unit, pose and light on a slider: rendered anew at every move.

    ``plan.size`` is the edge of the render in pixels, ``edge`` the one on the screen. ``au`` (17,) is what is shown.
    """

    still = False

    def __init__(self, plan: FacePlan, renderer: Renderer, *, edge: int = 340) -> None:
        self.plan, self.renderer = plan, renderer
        layout, style = widgets.Layout(width=f"{edge}px"), {"description_width": "120px"}
        self.person = widgets.IntSlider(1, 1, len(plan.subjects), description="person", style=style, layout=layout)
        spans = {
            "turn": (0, -32, 32), "nod": (0, -15, 15), "tilt": (0, -12, 12), "light from": (-25, -63, 63),
            "light height": (25, -6, 52),
        }  # fmt: skip
        self.view = {
            name: widgets.IntSlider(*span, description=f"{name} (°)", style=style, layout=layout)
            for name, span in spans.items()
        }
        self.preset = widgets.Dropdown(
            options=["as set below", *SAMPLE_EXPRESSIONS], description="expression",
            style={"description_width": "180px"}, layout=widgets.Layout(width="440px"),
        )  # fmt: skip
        self.sliders = au_sliders(MAX_INTENSITY, 0.1, ".1f", self._moved)
        self.preset.observe(self._take_preset, "value")
        for slider in (self.person, *self.view.values()):
            slider.observe(self.draw, "value")
        self.image, box = picture("rendered as you move", edge)
        super().__init__(
            page(
                row(
                    widgets.VBox([box, self.person, *self.view.values()]),
                    titled("Action units, from 0 (absent) to 5 (FACS letter E)", self.preset, *self.sliders),
                )
            )
        )
        self.add_class("expr")
        self.draw()

    @property
    def au(self) -> Tensor:
        return torch.tensor([slider.value for slider in self.sliders])

    def _take_preset(self, change: Any) -> None:
        if (units := SAMPLE_EXPRESSIONS.get(change["new"])) is not None:
            with all_at_once(self):
                for name, slider in zip(AU_NAMES, self.sliders, strict=True):
                    slider.value = units.get(name, 0.0)

    def _moved(self, change: Any) -> None:
        if not self.still:
            self.preset.value = "as set below"
            self.draw()

    @torch.inference_mode()
    def draw(self, change: Any = None) -> None:
        """Render what the sliders say."""
        who, device = torch.tensor([self.person.value - 1]), self.renderer.device
        yaw, pitch, roll, azimuth, height = (torch.tensor([float(slider.value)]) for slider in self.view.values())
        side, up = azimuth.deg2rad(), height.deg2rad()
        light = torch.stack((side.sin() * up.cos(), up.sin(), side.cos() * up.cos()), 1)  # (1, 3)
        first = (self.plan.subject == who).nonzero()[0]  # (1,): the rest of the view is that of the first image
        view = replace(self.plan.views[first], yaw=yaw, pitch=pitch, roll=roll, light=light)
        person = self.plan.subjects[who]
        image, _ = self.renderer(person.to(device), self.au[None].to(device), view.to(device), self.plan.size)
        self.image.value = encode_image((255 * image[0].permute(1, 2, 0)).round().to(torch.uint8).cpu())


class SwapExplorer(widgets.VBox):
    """Pick a and b: both swaps, the true answers, and what the AU judge reads in the first of them.

    ``faces``: whom to choose from.
    """

    def __init__(self, faces: Faces, *, edge: int = 140) -> None:
        self.faces = faces
        self.a, self.b, pickers = two_of(faces)
        captions = (
            "a", "a with b’s expression", "the true answer", "b", "b with a’s expression", "the true answer for b",
        )  # fmt: skip
        self.images, boxes = zip(*(picture(caption, edge) for caption in captions), strict=True)
        self.bars = widgets.HTML()
        chart = titled("Action units of a with b’s expression", self.bars, widgets.HTML(LEGEND))
        chart.layout.width = "370px"  # beside the pictures, also in JupyterLab with its file browser open
        pictures = widgets.VBox([widgets.HBox(boxes[:3]), widgets.HBox(boxes[3:])])
        super().__init__(page(pickers, row(pictures, chart)))
        self.add_class("expr")
        for picker in (self.a, self.b):
            picker.observe(self.draw, "value")
        self.draw()

    def draw(self, change: Any = None) -> None:
        """Swap the two that are chosen."""
        a, b, all_of = self.a.value, self.b.value, torch.ones(1, len(AU_NAMES))
        shown = []
        for i, j in ((a, b), (b, a)):
            shown += [self.faces.pixels[i], self.faces.mixed(i, j, all_of)[0], self.faces.truth(i, j, all_of)[0]]
        for image, pixels in zip(self.images, shown, strict=True):
            image.value = encode_image(pixels)
        judged, ceiling = self.faces.read(torch.stack(shown[1:3]))
        self.bars.value = bars(self.faces.plan.au[b], judged, ceiling, names=True)


class LatentMixer(widgets.VBox):
    """Face a between two expressions, its own (0) and b's (1), all action units together or each alone.

    Beside the network's picture: the true render of the same mixture, their difference, and what the AU judge reads in
    both. ``maximum`` above 1 lets the sliders go beyond b; the true render stops at intensity E, and at absent.
    ``weights`` (17,) is what the sliders say; ``animation()`` the way from a to b and back as a GIF.
    """

    still = False

    def __init__(self, faces: Faces, *, maximum: float = 1.0, edge: int = 150) -> None:
        self.faces, self.maximum = faces, maximum
        self.a, self.b, pickers = two_of(faces)
        captions = ("a", "b", "the network’s mixture", "the true mixture", "difference")
        self.images, boxes = zip(*(picture(caption, edge) for caption in captions), strict=True)
        self.off = boxes[-1].children[0]  # the caption of the difference
        self.all = widgets.FloatSlider(
            value=0.5, min=0.0, max=maximum, step=0.05, description="all together, from a to b",
            style={"description_width": "180px"}, layout=widgets.Layout(width="720px"),
        )  # fmt: skip
        self.sliders = au_sliders(maximum, 0.05, ".2f", self.draw)
        self.bars = widgets.HTML()
        self.button = widgets.Button(description="Make the animation", layout=widgets.Layout(width="220px"))
        self.movie, self.link = widgets.HTML(), widgets.HTML()
        each = widgets.VBox([widgets.Label("each alone", layout=widgets.Layout(height=f"{ROW}px")), *self.sliders])
        chart = row(widgets.HBox([each, self.bars]))
        super().__init__(
            page(pickers, row(*boxes), self.all, chart, widgets.HTML(LEGEND), self.button, self.movie, self.link)
        )
        self.add_class("expr")
        self.all.observe(self._together, "value")
        self.button.on_click(self._animate)
        for picker in (self.a, self.b):
            picker.observe(self.draw, "value")
        self._together()

    @property
    def weights(self) -> Tensor:
        return torch.tensor([slider.value for slider in self.sliders])

    def _together(self, change: Any = None) -> None:
        with all_at_once(self):
            for slider in self.sliders:
                slider.value = self.all.value

    def draw(self, change: Any = None) -> None:
        """Mix what the sliders say, and render the truth of it."""
        if self.still:
            return
        a, b, weights = self.a.value, self.b.value, self.weights[None]
        mixed, truth = self.faces.mixed(a, b, weights)[0], self.faces.truth(a, b, weights)[0]
        off = (mixed.float() - truth.float()).abs()  # (S, S, 3)
        white = (255 - 3 * off.mean(2, keepdim=True)).clamp(min=0).expand_as(off).to(torch.uint8)  # the same: white
        pixels = (self.faces.pixels[a], self.faces.pixels[b], mixed, truth, white)
        for image, shown in zip(self.images, pixels, strict=True):
            image.value = encode_image(shown)
        self.off.value = f"difference: {float(off.mean()):.1f} of 255"
        self.bars.value = bars(
            self.faces.au(a, b, weights)[0], *self.faces.read(torch.stack((mixed, truth))), names=False
        )

    def animation(self, steps: int = 12, edge: int = 160) -> bytes:
        """The network's mixture and the true one beside it, all AUs from 0 to ``maximum`` and back: a GIF."""
        way = torch.linspace(0, self.maximum, steps + 1)[:, None].expand(-1, len(AU_NAMES))
        both = torch.cat([f(self.a.value, self.b.value, way) for f in (self.faces.mixed, self.faces.truth)], 2)
        frames = [Image.fromarray(x).resize((2 * edge, edge), Image.Resampling.BICUBIC) for x in both.numpy()]
        buffer = io.BytesIO()
        frames[0].save(buffer, "gif", save_all=True, append_images=frames[1:] + frames[-2:0:-1], duration=90, loop=0)
        return buffer.getvalue()

    def _animate(self, button: widgets.Button) -> None:
        url = data_url(self.animation(), "gif")
        self.movie.value = f'<img src="{url}" alt="the network’s mixture on the left, the true one on the right">'
        self.link.value = f'<a href="{url}" download="mixture.gif">Save as GIF</a>'


class FeatureMap(widgets.VBox):
    """Points on a map, such as a UMAP of features; the one that is chosen shows its face.

    ``points`` (N, 2), ``images`` (N, S, S, 3) uint8, ``labels`` and ``colors`` (N,); ``legend`` names the colours.
    Click a point, or walk from left to right with the slider. Some hundred points are a good number. ``chosen`` is its
    row.
    """

    def __init__(
        self, points: np.ndarray, images: Tensor | np.ndarray, labels: Sequence[str], colors: Sequence[str] = (), *,
        legend: Mapping[str, str] | None = None, edge: int = 480,
    ) -> None:  # fmt: skip
        if not len(points) == len(images) == len(labels):
            raise ValueError(
                f"found {len(points)} points, {len(images)} images, {len(labels)} labels, expected as many"
            )
        place = (points - points.min(0)) / np.maximum(np.ptp(points, 0), 1e-9)  # (N, 2) in [0, 1]
        self.images, self.labels, self.order = images, labels, np.argsort(place[:, 0], kind="stable")
        looks = [
            f"left: {2 + 96 * place[k, 0]:.2f}%; top: {98 - 96 * place[k, 1]:.2f}%; "
            f"background: {colors[k] if len(colors) else COLORS['blue']}"
            for k in self.order
        ]
        self.points, style = choice([f"{k}: {labels[k]}" for k in self.order], looks, "expr-map")
        self.points.layout = widgets.Layout(width=f"{edge}px", height=f"{edge}px")
        self.walk = widgets.IntSlider(
            0, 0, len(points) - 1, description="left to right", readout=False, layout=widgets.Layout(width=f"{edge}px")
        )
        widgets.link((self.points, "index"), (self.walk, "value"))
        self.image, box = picture("the chosen point", 256)
        self.label = widgets.Label()
        keys = (f'<span style="color: {color}">●</span> {html.escape(name)}' for name, color in (legend or {}).items())
        super().__init__(
            page(
                row(
                    widgets.VBox([self.points, self.walk, style]),
                    widgets.VBox([box, self.label, widgets.HTML("<br>".join(keys))]),
                )
            )
        )
        self.add_class("expr")
        self.points.observe(self.draw, "index")
        self.draw()

    @property
    def chosen(self) -> int:
        return int(self.order[self.points.index])

    def draw(self, change: Any = None) -> None:
        """Show the face of the chosen point."""
        self.image.value = encode_image(self.images[self.chosen])
        self.label.value = self.labels[self.chosen]
