"""The widgets: what each one draws, and two walks in a real browser, through Voila and through JupyterLab."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from browser import FLAGS, PATIENCE, chromium, opened, served
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, TimeoutError, sync_playwright

from expr_lib import FIRST, swap
from expr_lib.apps.widgets import EncodedFaces, FaceExplorer, FeatureMap, LatentMixer, RunSlider, SwapExplorer, bars
from expr_lib.faces.build import SAMPLE_EXPRESSIONS
from expr_lib.faces.plan import FacesConfig, plan_faces
from expr_lib.faces.render import Renderer, load_renderer
from expr_lib.facs import AU_NAMES
from expr_lib.measure.judges import load_judges

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PLAN = plan_faces(FacesConfig(n_subjects=12, images_per_subject=1, size=64, seed=4610))
PLAN_OF_3 = replace(PLAN, subject=PLAN.subject[:3], au=PLAN.au[:3], views=PLAN.views[:3])


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return load_renderer()


@pytest.fixture(scope="module")
def faces(renderer: Renderer) -> EncodedFaces:
    return EncodedFaces(swap.load(), PLAN_OF_3, renderer, load_judges().au)


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def changes(image) -> list[bytes]:
    """A list that grows by one whenever a widget's picture is drawn."""
    seen: list[bytes] = []
    image.observe(lambda change: seen.append(change["new"]), "value")
    return seen


# -- what is drawn -------------------------------------------------------------------------------------------------


def test_the_truth_of_a_mixture_starts_at_a_and_ends_at_the_true_swap(faces, renderer):
    ends = torch.tensor([0.0, 1.0])[:, None].expand(2, 17)
    start, end = faces.truth(0, 2, ends)
    assert (start == faces.pixels[0]).all()
    true = PLAN_OF_3.render(renderer, [0], au_rows=[2])[0][0]
    assert (end.int() - true.int()).abs().max() <= 1  # alone or in a batch of two, sums are rounded in another order


def test_the_mixture_starts_at_the_reconstruction_and_ends_at_the_swap(faces):
    swapped, _ = swap.swap_images(faces.swapper, faces.pixels[[0]], faces.pixels[[2]])
    itself, _ = swap.swap_images(faces.swapper, faces.pixels[[0]], faces.pixels[[0]])
    start, end = faces.mixed(0, 2, torch.tensor([0.0, 1.0])[:, None].expand(2, 17)).int()
    assert (end - torch.tensor(swapped[0]).int()).abs().max() <= 1
    assert (start - torch.tensor(itself[0]).int()).abs().max() <= 1


def test_beyond_b_the_truth_stops_at_the_scale_of_facs(faces):
    far = faces.au(0, 1, torch.full((1, 17), 9.0))
    assert far.min() == 0 and far.max() == 5


def test_faces_of_another_size_are_refused_by_a_generator_that_draws(faces, renderer):
    with pytest.raises(ValueError, match="plan: found size 128, expected 64"):
        EncodedFaces(swap.load(FIRST), replace(PLAN_OF_3, size=128), renderer, faces.judge)
    large = EncodedFaces(faces.swapper, replace(PLAN_OF_3, size=96), renderer, faces.judge)  # one that moves takes any
    assert large.mixed(0, 1, torch.ones(1, len(AU_NAMES))).shape == (1, 96, 96, 3)


def test_the_global_slider_moves_every_action_unit_and_draws_once(faces):
    mixer = LatentMixer(faces)
    drawn = changes(mixer.images["mixed"])
    mixer.all.value = 1.0
    assert (mixer.weights == 1).all() and len(drawn) == 1
    expected = faces.mixed(*faces.lively(), mixer.weights[None])[0]
    assert (pixels(drawn[0]) == expected.numpy()).all()
    mixer.sliders[3].value = 0.0
    assert len(drawn) == 2 and mixer.all.value == 1.0


def test_picking_another_face_draws_it(faces):
    mixer = LatentMixer(faces)
    mixer.a.value, mixer.b.value = 1, 2
    assert (pixels(mixer.images["a"].value) == faces.pixels[1].numpy()).all()
    assert (pixels(mixer.images["rest"].value) == faces.rest[1].numpy()).all()
    assert (pixels(mixer.images["truth"].value) == faces.truth(1, 2, mixer.weights[None])[0].numpy()).all()


def test_the_difference_is_white_where_both_pictures_agree(faces, monkeypatch):
    monkeypatch.setattr(faces, "mixed", faces.truth)
    mixer = LatentMixer(faces)
    assert (pixels(mixer.images["off"].value) == 255).all() and mixer.off.value == "difference: 0.0 of 255"


def test_the_animation_goes_there_and_back(faces):
    with Image.open(io.BytesIO(LatentMixer(faces).animation())) as film:
        assert (film.format, film.size, film.n_frames, film.info["loop"]) == ("GIF", (448, 224), 24, 0)


def test_the_swap_explorer_shows_both_swaps_and_both_truths(faces):
    explorer = SwapExplorer(faces)
    explorer.a.value, explorer.b.value = 0, 1
    shown = [pixels(image.value).astype(int) for image in explorer.images]
    a, a_rest, a_swapped, a_true, b, b_rest, b_swapped, b_true = shown
    assert (a_rest == faces.rest[0].numpy()).all() and (b_rest == faces.rest[1].numpy()).all()
    one, two = swap.swap_images(faces.swapper, faces.pixels[0], faces.pixels[1])
    all_of = torch.ones(1, 17)
    assert (a == faces.pixels[0].numpy()).all() and (b == faces.pixels[1].numpy()).all()
    assert abs(a_swapped - one).max() <= 1 and abs(b_swapped - two).max() <= 1
    assert (a_true == faces.truth(0, 1, all_of)[0].numpy()).all()
    assert (b_true == faces.truth(1, 0, all_of)[0].numpy()).all()


def test_a_slider_over_runs_shows_the_pictures_and_the_note_of_the_chosen_one():
    pictures = {name: np.full((3, 8, 8, 3), value, np.uint8) for name, value in (("slow", 10), ("fast", 200))}
    widget = RunSlider(pictures, {"slow": "hides nothing", "fast": "hides a lot"}, "speed of D")
    assert widget.note.value == "hides nothing"
    widget.slider.value = "fast"
    shown = np.asarray(Image.open(io.BytesIO(widget.image.value)))
    assert widget.note.value == "hides a lot" and shown.shape == (8, 24, 3) and (shown == 200).all()


def test_bars_are_as_long_as_the_intensities():
    asked, judged, ceiling = torch.zeros(17), torch.zeros(17), torch.zeros(17)
    asked[8], judged[8], ceiling[8] = 5.0, 2.5, 9.0  # beyond E: no longer than E
    svg = bars(asked, judged, ceiling, names=True)
    widths = [float(part.split('"')[0]) for part in svg.split(' width="')[2:]]
    assert sorted(widths)[-2:] == [sorted(widths)[-1] / 2, sorted(widths)[-1]] and sum(w > 0 for w in widths) == 2
    assert "AU12: requested 5.0, read 2.5, in the true render 5.0" in svg


def test_the_face_explorer_renders_the_person_the_expression_and_the_pose(renderer):
    explorer = FaceExplorer(PLAN, renderer)
    drawn = changes(explorer.image)
    explorer.preset.value = "joy"
    assert len(drawn) == 1  # though seventeen sliders moved
    assert {n: v for n, v in zip(AU_NAMES, explorer.au.tolist(), strict=True) if v} == SAMPLE_EXPRESSIONS["joy"]
    explorer.sliders[0].value = 2.0
    assert len(drawn) == 2 and explorer.preset.value == "as set below"
    explorer.person.value = 12
    explorer.view["turn"].value = 20
    assert len({*drawn}) == 4 and pixels(drawn[-1]).shape == (64, 64, 3)


def test_a_point_of_the_map_shows_its_face():
    points = np.array([[3.0, 0.0], [1.0, 1.0], [2.0, 5.0]])
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1).repeat(4, 1).repeat(4, 2).repeat(3, 3)
    chart = FeatureMap(points, images, ["right", "left", "middle"])
    assert chart.chosen == 1 and chart.label.value == "left"  # the slider walks from left to right
    chart.walk.value = 2
    assert chart.chosen == 0 and chart.label.value == "right" and (pixels(chart.image.value) == 0).all()
    chart.points.index = 1
    assert chart.chosen == 2 and chart.walk.value == 1
    with pytest.raises(ValueError, match="found 3 points, 3 images, 2 labels"):
        FeatureMap(points, images, ["a", "b"])


# -- in a real browser ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        if (path := chromium(playwright)) is None:
            pytest.skip(
                "NO CHROMIUM: the widgets were not tested in a browser. Install it (`apt-get install chromium`), "
                "or `.venv/bin/playwright install chromium`) and run this again."
            )
        with playwright.chromium.launch(executable_path=path, args=FLAGS) as browser:
            yield browser


def shown(picture: Locator) -> np.ndarray:
    """The pixels of an image on the page, (S, S, 3) uint8."""
    script = """async image => {
        const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
        return btoa(String.fromCharCode(...bytes));
    }"""
    for _ in range(20):  # its address is gone for a moment while it is redrawn
        try:
            return pixels(base64.b64decode(picture.evaluate(script)))
        except Exception as error:
            last = error
            time.sleep(0.1)
    raise last


def after(act: Callable[[], None], picture: Locator) -> np.ndarray:
    """Do something, wait until the picture is another one and still, and return it."""
    before = shown(picture)
    act()
    until = time.monotonic() + PATIENCE / 1000
    now = before
    while time.monotonic() < until:
        time.sleep(0.3)
        last, now = now, shown(picture)
        if (now != before).any() and (now == last).all():
            return now
    raise AssertionError("the picture did not change")


def press(page: Page, box: Locator, description: str, key: str) -> Callable[[], None]:
    """Focus the handle of the slider of this description, and press a key."""
    slider = box.locator(".widget-slider", has=page.get_by_text(description, exact=True))

    def act() -> None:
        slider.locator(".noUi-handle").focus()
        page.keyboard.press(key)

    return act


def test_the_app_in_voila(browser, faces, tmp_path):
    """`make app`: sliders, thumbnails and tabs, by keyboard and by mouse."""
    large = replace(PLAN, size=256)  # as in app/mixer.ipynb
    encoded = EncodedFaces(faces.swapper, large, faces.renderer, faces.judge)
    a, b = encoded.lively()  # what the mixer starts with
    k = int((PLAN.au[b] - PLAN.au[a]).abs().argmax())  # the AU that differs most
    sign = float((PLAN.au[b] - PLAN.au[a])[k].sign())
    shutil.copy(NOTEBOOKS / "app" / "mixer.ipynb", tmp_path)
    with (
        served(tmp_path, "voila", str(tmp_path / "mixer.ipynb")) as address,
        opened(browser, address) as (page, errors),
    ):
        page.goto(address)
        tab = page.get_by_role("tab")
        mixer, explorer, face = (page.locator(".widget-tab-contents > .expr").nth(n) for n in range(3))
        picture = mixer.locator("img.widget-image")
        picture.nth(5).wait_for()

        def read() -> np.ndarray:  # what the judge reads in the network's picture and in the truth: (2, 17)
            return faces.read(torch.tensor(np.stack([shown(picture.nth(n)) for n in (3, 4)]))).numpy()

        after(press(page, mixer, "all together, from a to b", "Home"), picture.nth(4))  # the truth comes last
        moved_by = abs(shown(picture.nth(4)).astype(int) - shown(picture.nth(0)))
        assert (moved_by > 1).mean() < 0.005  # nothing moved: the truth is a itself, but for rounding
        before = read()
        slider = next(
            text for text in mixer.locator(".expr-row label").all_inner_texts() if text.split()[0] == AU_NAMES[k]
        )
        after(press(page, mixer, slider, "End"), picture.nth(4))
        moved = (read() - before)[:, k] * sign
        assert (moved > 0.3).all(), f"{AU_NAMES[k]} went by {moved} (network, truth) towards b"

        def many() -> None:  # faster than anything can be drawn: what counts is where it ends
            press(page, mixer, "all together, from a to b", "Home")()
            for _ in range(20):
                page.keyboard.press("ArrowRight")

        many()
        expected = encoded.mixed(a, b, torch.ones(1, 17))[0].numpy().astype(int)
        until = time.monotonic() + PATIENCE / 1000
        while abs(shown(picture.nth(3)) - expected).max() > 1:
            assert time.monotonic() < until, "the picture of the last value never came"
            time.sleep(0.3)

        now = after(mixer.locator(".expr-faces").nth(0).get_by_role("button").nth(4).click, picture.nth(0))
        assert (now == encoded.pixels[4].numpy()).all()
        mixer.get_by_role("button", name="Make the animation").click()
        assert mixer.get_by_role("link", name="Save as GIF").get_attribute("href").startswith("data:image/gif;base64,")

        tab.filter(has_text="Swap").click()
        button = explorer.locator(".expr-faces").nth(1).get_by_role("button").nth((b + 1) % len(PLAN))
        after(lambda: (button.focus(), page.keyboard.press("Enter")), explorer.locator("img.widget-image").nth(2))
        tab.filter(has_text="Faces").click()
        image = face.locator("img.widget-image")
        closed = shown(image)
        jaw = after(press(page, face, "AU26 jaw drop", "End"), image)
        calm, dropped = (float(faces.read(torch.tensor(x[None]))[0, AU_NAMES.index("AU26")]) for x in (closed, jaw))
        assert dropped > calm + 2
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        assert not errors


def test_notebook_08_in_jupyterlab(browser, tmp_path):
    """Open it, run all cells, move a slider, choose a point of a map, save: no error on the page or in the file."""
    notebook = nbformat.read(NOTEBOOKS / "08_mixing_expressions.ipynb", as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source += f"\nn_pairs, n_steps, n_people, out = 16, 2, 2, {str(tmp_path / 'out')!r}"
    notebook.cells.append(
        nbformat.v4.new_code_cell(
            "from expr_lib.apps.widgets import FeatureMap\n"
            "FeatureMap(faces.f_r.flatten(1)[:, :2].cpu().numpy(), faces.pixels, faces.labels)"
        )
    )
    path = tmp_path / "work" / "mixing.ipynb"
    path.parent.mkdir()
    nbformat.write(notebook, path)
    settings = {
        "apputils-extension/notification": {"fetchNews": "false"},
        "notebook-extension/tracker": {"windowingMode": "none"},  # every cell stays on the page
    }
    for name, values in settings.items():
        file = tmp_path / "jupyterlab_settings_dir" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    file = (
        tmp_path / "jupyterlab_settings_dir" / "@jupyter-widgets" / "jupyterlab-manager" / "plugin.jupyterlab-settings"
    )
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"saveState": True}))

    options = ("--allow-root", f"--ServerApp.root_dir={path.parent}", "--IdentityProvider.token=")
    with served(tmp_path, "jupyter-lab", *options) as address, opened(browser, address) as (page, errors):
        page.goto(f"{address}/lab/tree/{path.name}")
        panel = page.locator(".jp-NotebookPanel:visible")
        panel.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
        started = panel.locator(".jp-CodeCell .jp-InputPrompt").first.filter(has_text=re.compile(r"\[[*\d]"))
        for _ in range(10):  # "idle" may show before there is a kernel, and then nothing is run, without a word
            with suppress(TimeoutError):
                if (asked := page.locator(".jp-Dialog .jp-mod-accept")).count():  # a busy machine: which kernel?
                    asked.click(timeout=5_000)
                page.get_by_role("menuitem", name="Run", exact=True).click(timeout=5_000)
                page.get_by_text("Run All Cells", exact=True).click(timeout=5_000)
                started.wait_for(timeout=5_000)
                break
        mixer, chart = panel.locator(".expr").first, panel.locator(".expr").last
        panel.locator(".expr-map").wait_for(timeout=600_000)  # the cells above it take minutes on a slow machine
        picture = mixer.locator("img.widget-image").nth(2)  # a, b, then the mixture: this notebook's network draws
        after(press(page, mixer, "all together, from a to b", "End"), picture)
        after(chart.get_by_role("button").nth(7).click, chart.locator("img.widget-image"))
        page.keyboard.press("Control+s")
        for _ in range(100):
            with suppress(nbformat.reader.NotJSONError):  # JupyterLab is just writing it
                saved = nbformat.read(path, as_version=4)
                if "widgets" in saved.metadata:
                    break
            time.sleep(0.2)
        state = json.dumps(saved.metadata["widgets"])
        assert "ToggleButtonsModel" in state and '"output_type": "error"' not in state
        assert all(output.output_type != "error" for cell in saved.cells for output in cell.get("outputs", []))
        assert not errors
