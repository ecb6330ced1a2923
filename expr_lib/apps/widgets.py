"""Widgets for JupyterLab and Voila: explore faces, swap two, mix two, walk over a map of features, compare runs.

While the kernel draws, a slider waits in the browser and then sends its newest value only: ipywidgets drops those in
between. So every handler here draws at once, and once, from features that were encoded when the faces were chosen.
Needs the extra `course`.
"""

from __future__ import annotations

import asyncio
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from expr_lib.apps.widget_parts import (
    LEGEND,
    ROW,
    EncodedFaces,
    au_sliders,
    bars,
    choice,
    data_url,
    encode_image,
    marked,
    page,
    picture,
    row,
    titled,
    two_of,
)
from expr_lib.faces.build import SAMPLE_EXPRESSIONS
from expr_lib.faces.plan import FacePlan
from expr_lib.faces.render import Renderer
from expr_lib.facs import AU_NAMES, MAX_INTENSITY
from expr_lib.measure.plots import COLORS

__all__ = ["EncodedFaces", "FaceExplorer", "FeatureMap", "LatentMixer", "RunSlider", "SwapExplorer"]

STILL = 0.12
"""Seconds without a change after which the true mixture is rendered, which takes longer than the network."""
ROOM = widgets.Layout(flex="1 1 420px", min_width="360px")
"""Layout of pictures, which take the space that sliders and bars leave."""


@contextmanager
def all_at_once(widget: FaceExplorer | LatentMixer) -> Iterator[None]:
    """In this context, many sliders can be set; the widget draws once at the end."""
    widget.still = True
    try:
        yield
    finally:
        widget.still = False
    widget.draw()


class FaceExplorer(widgets.VBox):
    """The people of a plan, with a slider for every action unit, pose and light; every change renders the face again.

    `plan.size` is the side of the render in pixels; `au` (17,) are the intensities that are shown.
    """

    still = False

    def __init__(self, plan: FacePlan, renderer: Renderer) -> None:
        self.plan, self.renderer = plan, renderer
        layout, style = widgets.Layout(width="340px"), {"description_width": "120px"}
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
        self.image, box = picture("rendered when you move a slider", 340)
        box.layout.width = "340px"
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
        """Render the face with the values of the sliders."""
        who, device = torch.tensor([self.person.value - 1]), self.renderer.device
        yaw, pitch, roll, azimuth, height = (torch.tensor([float(slider.value)]) for slider in self.view.values())
        side, up = azimuth.deg2rad(), height.deg2rad()
        light = torch.stack((side.sin() * up.cos(), up.sin(), side.cos() * up.cos()), 1)  # (1, 3)
        first = (self.plan.subject == who).nonzero()[0]  # (1,): other values of the view are from the first image
        view = replace(self.plan.views[first], yaw=yaw, pitch=pitch, roll=roll, light=light)
        person = self.plan.subjects[who]
        image, _ = self.renderer(person.to(device), self.au[None].to(device), view.to(device), self.plan.size)
        self.image.value = encode_image((255 * image[0].permute(1, 2, 0)).round().to(torch.uint8).cpu())


class SwapExplorer(widgets.VBox):
    """Shows both swaps of two chosen faces, the true answers, and the AUs that the judge reads from the first swap.

    For a moving generator, the faces at rest are also shown. `faces` are those to choose from.
    """

    def __init__(self, faces: EncodedFaces) -> None:
        self.faces = faces
        self.a, self.b, pickers = two_of(faces)
        captions = ["a", "a at rest", "a with b’s expression", "the true answer"]
        captions += ["b", "b at rest", "b with a’s expression", "the true answer for b"]
        if faces.rest is None:
            captions = [caption for caption in captions if "at rest" not in caption]
        self.images, boxes = zip(*(picture(caption, 256) for caption in captions), strict=True)
        self.bars = widgets.HTML()
        chart = titled("Action units of a with b’s expression", self.bars, widgets.HTML(LEGEND))
        chart.layout.width = "370px"
        half = len(boxes) // 2
        pictures = widgets.VBox([widgets.HBox(boxes[:half]), widgets.HBox(boxes[half:])], layout=ROOM)
        super().__init__(page(pickers, row(pictures, chart)))
        self.add_class("expr")
        for picker in (self.a, self.b):
            picker.observe(self.draw, "value")
        self.draw()

    def draw(self, change: Any = None) -> None:
        """Swap the two chosen faces."""
        a, b, all_of = self.a.value, self.b.value, torch.ones(1, len(AU_NAMES))
        shown = []
        for i, j in ((a, b), (b, a)):
            rest = [] if self.faces.rest is None else [self.faces.rest[i]]
            swapped, truth = self.faces.mixed(i, j, all_of)[0], self.faces.truth(i, j, all_of)[0]
            shown += [self.faces.pixels[i], *rest, swapped, truth]
        for image, pixels in zip(self.images, shown, strict=True):
            image.value = encode_image(pixels)
        half = len(shown) // 2
        judged, ceiling = self.faces.read(torch.stack(shown[half - 2 : half]))
        self.bars.value = bars(self.faces.plan.au[b], judged, ceiling, names=True)


class LatentMixer(widgets.VBox):
    """Face a between two expressions, its own (0) and that of b (1), with all action units together or each alone.

    Also shown are the true render of the same mixture, their difference, and the AUs that the judge reads from both.
    With `maximum` above 1 the sliders go beyond b; the intensities of the true render are clamped to [0, 5].
    `weights` (17,) are the values of the sliders; `animation()` is a GIF from a to b and back.
    """

    still = False
    waiting: asyncio.TimerHandle | None = None

    def __init__(self, faces: EncodedFaces, *, maximum: float = 1.0) -> None:
        self.faces, self.maximum = faces, maximum
        self.a, self.b, pickers = two_of(faces)
        captions = {
            "a": "a", "rest": "a at rest", "b": "b", "mixed": "the network’s mixture", "truth": "the true mixture",
            "off": "difference",
        }  # fmt: skip
        if faces.rest is None:
            del captions["rest"]
        pairs = {name: picture(caption, 256) for name, caption in captions.items()}
        self.images = {name: image for name, (image, _) in pairs.items()}
        self.off = pairs["off"][1].children[0]  # the caption of the difference
        boxes = [box for _, box in pairs.values()]
        pictures = widgets.VBox([widgets.HBox(boxes[:-3]), widgets.HBox(boxes[-3:])], layout=ROOM)
        pictures.add_class("expr-stay")
        self.all = widgets.FloatSlider(
            value=0.5, min=0.0, max=maximum, step=0.05, description="all together, from a to b",
            style={"description_width": "180px"}, layout=widgets.Layout(width="698px"),
        )  # fmt: skip
        self.sliders = au_sliders(maximum, 0.05, ".2f", self.draw)
        for slider in (self.all, *self.sliders):
            slider.add_class("expr-to-b")
        mark = f".expr-to-b .noUi-target {{ --b: {100 / maximum:.2f}% }}"  # marks b on every slider
        self.bars = widgets.HTML()
        self.button = widgets.Button(description="Make the animation", layout=widgets.Layout(width="220px"))
        self.movie, self.link = widgets.HTML(), widgets.HTML()
        each = widgets.VBox([widgets.Label("each alone", layout=widgets.Layout(height=f"{ROW}px")), *self.sliders])
        chart = widgets.VBox([self.all, row(widgets.HBox([each, self.bars])), widgets.HTML(LEGEND)])
        css = widgets.HTML(f"<style>{mark}</style>", layout=widgets.Layout(display="none"))
        super().__init__(page(css, pickers, row(pictures, chart), self.button, self.movie, self.link))
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
        """Mix with the weights of the sliders, and render the true mixture when they have not moved for a moment."""
        if self.still:
            return
        a, b, weights = self.a.value, self.b.value, self.weights[None]
        mixed = self.faces.mixed(a, b, weights)[0]
        self._show("mixed", mixed)
        self._show("a", self.faces.pixels[a])
        self._show("b", self.faces.pixels[b])
        if self.faces.rest is not None:
            self._show("rest", self.faces.rest[a])
        if self.waiting is not None:
            self.waiting.cancel()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel
            self._show_truth(a, b, weights, mixed)
        else:
            self.waiting = loop.call_later(STILL, self._show_truth, a, b, weights, mixed)

    def _show_truth(self, a: int, b: int, weights: Tensor, mixed: Tensor) -> None:
        truth = self.faces.truth(a, b, weights)[0]
        off = (mixed.float() - truth.float()).abs()  # (S, S, 3)
        self._show("truth", truth)
        self._show("off", (255 - 3 * off.mean(2, keepdim=True)).clamp(min=0).expand_as(off).to(torch.uint8))  # 0: white
        self.off.value = f"difference: {float(off.mean()):.1f} of 255"
        read = self.faces.read(torch.stack((mixed, truth)))
        self.bars.value = bars(self.faces.au(a, b, weights)[0], *read, names=False)

    def _show(self, name: str, pixels: Tensor) -> None:
        if (new := encode_image(pixels)) != self.images[name].value:
            self.images[name].value = new

    def animation(self) -> bytes:
        """A GIF of the network's mixture and the true one beside it, with all AUs from 0 to `maximum` and back."""
        way = torch.linspace(0, self.maximum, 13)[:, None].expand(-1, len(AU_NAMES))
        both = torch.cat([f(self.a.value, self.b.value, way) for f in (self.faces.mixed, self.faces.truth)], 2)
        frames = [marked(Image.fromarray(x).resize((448, 224), Image.Resampling.BICUBIC)) for x in both.numpy()]
        buffer = io.BytesIO()
        frames[0].save(buffer, "gif", save_all=True, append_images=frames[1:] + frames[-2:0:-1], duration=90, loop=0)
        return buffer.getvalue()

    def _animate(self, button: widgets.Button) -> None:
        url = data_url(self.animation(), "gif")
        self.movie.value = f'<img src="{url}" alt="the network’s mixture on the left, the true one on the right">'
        self.link.value = f'<a href="{url}" download="mixture.gif">Save as GIF</a>'


class FeatureMap(widgets.VBox):
    """Points on a map, such as a UMAP of features, and the face of the chosen point.

    `points` (N, 2), `images` (N, S, S, 3) uint8, `labels` and `colors` (N,); `legend` {name: colour}. Click a point, or
    go through them from left to right with the slider. A few hundred points work well. `chosen` is the row of the
    chosen point. Raises `ValueError` if the lengths differ.
    """

    def __init__(
        self, points: np.ndarray, images: Tensor | np.ndarray, labels: Sequence[str], colors: Sequence[str] = (), *,
        legend: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        if not len(points) == len(images) == len(labels):
            raise ValueError(
                f"found {len(points)} points, {len(images)} images, {len(labels)} labels, expected equal numbers"
            )
        place = (points - points.min(0)) / np.maximum(np.ptp(points, 0), 1e-9)  # (N, 2) in [0, 1]
        self.images, self.labels, self.order = images, labels, np.argsort(place[:, 0], kind="stable")
        looks = [
            f"left: {2 + 96 * place[k, 0]:.2f}%; top: {98 - 96 * place[k, 1]:.2f}%; "
            f"background: {colors[k] if len(colors) else COLORS['blue']}"
            for k in self.order
        ]
        self.points, style = choice([f"{k}: {labels[k]}" for k in self.order], looks, "expr-map")
        self.points.layout = widgets.Layout(width="480px", height="480px")
        self.walk = widgets.IntSlider(
            0, 0, len(points) - 1, description="left to right", readout=False, layout=widgets.Layout(width="480px")
        )
        widgets.link((self.points, "index"), (self.walk, "value"))
        self.image, box = picture("the chosen point", 256)
        box.layout.width = "256px"
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


class RunSlider(widgets.VBox):
    """A slider over runs that are finished: it shows pictures of the chosen one and a note, and computes nothing.

    `pictures` {name of a run: (n, S, S, 3) uint8}, in the order of the slider; `notes` {name: what to know about
    it}; `label`: what differs between the runs; `edge`: size of a picture on the screen in pixels.
    """

    def __init__(
        self, pictures: Mapping[str, np.ndarray], notes: Mapping[str, str], label: str, edge: int = 96
    ) -> None:
        super().__init__()
        self.strips = {name: encode_image(np.concatenate(list(images), 1)) for name, images in pictures.items()}
        self.notes = dict(notes)
        n = max(len(images) for images in pictures.values())
        wide = {"style": {"description_width": "initial"}, "layout": widgets.Layout(width="480px")}
        self.slider = widgets.SelectionSlider(options=list(pictures), description=label, **wide)
        self.image = widgets.Image(format="png", layout=widgets.Layout(width="100%", max_width=f"{n * edge}px"))
        self.note = widgets.Label()
        self.slider.observe(self.draw, "value")
        self.draw()
        self.children = page(self.slider, self.note, self.image)

    def draw(self, change: Any = None) -> None:
        self.image.value, self.note.value = self.strips[self.slider.value], self.notes[self.slider.value]
