"""The page that mixes faces in the browser: its networks give torch's pictures, in onnxruntime and in Chromium.

Skipped without the extra `web`; in Chromium also without Chromium, and without npm or its registry.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from expr_lib import FIRST, SHIPPED
from expr_lib.apps import page
from expr_lib.errors import InputError
from expr_lib.facs import AU_NAMES
from expr_lib.images import read_image
from expr_lib.model import ModelConfig, Swapper
from expr_lib.swap import load, rest_images, swap_images

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"no {package}: the extra web brings it")
SIZE = 256


@pytest.fixture(scope="module")
def swapper() -> Swapper:
    return load()


@pytest.fixture(scope="module")
def graphs(swapper) -> tuple[bytes, bytes]:
    return page.export(swapper, SIZE)


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    """Faces of the data set's sample, enlarged to 256 pixels: (4, 256, 256, 3) uint8."""
    names = ("0-joy", "1-surprise", "3-anger", "4-sadness")
    files = [Path(__file__).parents[1] / "data" / f"subject-{name}.png" for name in names]
    return np.stack([np.array(Image.fromarray(read_image(x)).resize((SIZE, SIZE))) for x in files])


def off(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize(
    "weights",
    [np.zeros(17), np.ones(17), np.full(17, 1.5), np.eye(17)[AU_NAMES.index("AU26")], np.linspace(0, 1.5, 17)],
    ids=["own", "other", "beyond", "jaw", "each another"],
)
def test_onnxruntime_gives_the_pictures_of_torch(swapper, graphs, faces, weights):
    weights = weights.astype(np.float32)
    for a, b in ((faces[0], faces[1]), (faces[2], faces[3]), (faces[1], faces[2])):
        rest, mixed = page.onnx_mix(*graphs, a, b, weights)
        assert off(rest, rest_images(swapper, a)) <= 1
        assert off(mixed, swap_images(swapper, a, b, torch.from_numpy(weights))[0]) <= 1


def test_a_network_that_looks_at_128_pixels_is_exported_too(faces):
    torch.manual_seed(0)
    large = Swapper(ModelConfig(size=128, generator="moved", n_aus=3, width=16, width_r=16)).eval()
    large.au_names = AU_NAMES[:3]
    for name, parameter in large.named_parameters():
        if name.endswith(("flow.weight", "fill.weight")):  # they begin as a copy
            torch.nn.init.normal_(parameter, 0, 0.1)
    graphs = page.export(large, 192)
    a, b = (np.array(Image.fromarray(x).resize((192, 192))) for x in faces[:2])
    assert page.difference(large, *graphs, a, b) <= 1
    assert off(swap_images(large, a, b)[0], a) > 20


def test_a_drawing_generator_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"swap-64.safetensors: found a drawing generator, expected a moving one"):
        page.page(tmp_path / "page", checkpoint=FIRST)
    assert not list(tmp_path.iterdir())


def test_without_npm_one_line_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"^npm: not found; expected Node.js with npm"):
        page.page(tmp_path / "page")


def test_another_archive_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\nfor x; do case $x in --pack-destination=*) echo other > "${x#*=}/a.tgz";; esac; done\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(InputError, match=r"found an archive with SHA-512 .*, expected "):
        page.runtime_files()


# -- in Chromium ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory, swapper, graphs) -> Path:
    """The page as `expr-lib page` writes it; the export is made once for all tests."""
    out = tmp_path_factory.mktemp("page") / "page"
    try:
        runtime = page.runtime_files()
    except InputError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "runtime_files", lambda: runtime)
        patch.setattr(page, "export", lambda swapper, size: graphs)
        page.page(out)
    return out


@pytest.fixture(scope="module")
def address(folder):
    pytest.importorskip("playwright")
    from browser import served_files

    with served_files(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    from browser import FLAGS, chromium

    with playwright.sync_playwright() as started:
        path = chromium(started)
        if path is None:
            pytest.skip("no Chromium: `make chromium` installs it")
        with started.chromium.launch(executable_path=path, args=FLAGS) as browser:
            yield browser


def shown(tab, name: str = "mixed") -> np.ndarray:
    """The pixels of a canvas, (S, S, 3), when everything that was asked for is drawn."""
    tab.locator("#mixed[aria-busy=false]").wait_for()
    script = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    return np.array(tab.locator(f"#{name}").evaluate(script), np.uint8).reshape(SIZE, SIZE, 4)[..., :3]


def test_sliders_and_faces_draw_the_pictures_of_torch(browser, address, folder, swapper):
    from browser import opened

    about = json.loads((folder / "about.json").read_text())
    assert [au["name"] for au in about["aus"]] == list(AU_NAMES) and about["weights"] == SHIPPED.name
    pictures = [read_image(folder / name) for name in about["faces"]]
    with opened(browser, address) as (tab, errors):
        tab.goto(f"{address}/index.html")
        first = shown(tab)
        weights, a, b = torch.ones(17), 2, 9

        def expected() -> np.ndarray:
            amount = float(tab.locator("#amount").input_value())
            return swap_images(swapper, pictures[a], pictures[b], amount * weights)[0]

        assert off(first, expected()) <= 1
        assert off(shown(tab, "rest"), rest_images(swapper, pictures[a])) <= 1
        assert off(shown(tab, "show-b"), pictures[b]) == 0

        tab.get_by_label("lip corner puller").fill("0.25")
        weights[AU_NAMES.index("AU12")] = 0.25
        assert off(shown(tab), expected()) <= 1 and off(shown(tab), first) > 10

        slider = tab.get_by_label("Amount")
        slider.focus()
        for _ in range(30):  # faster than pictures are drawn: only the newest state counts
            slider.press("ArrowRight")
        assert float(slider.input_value()) == pytest.approx(1.3)
        assert off(shown(tab), expected()) <= 1

        tab.get_by_role("group", name="Face A").get_by_label("face 5").check()
        a = 4
        assert off(shown(tab), expected()) <= 1
        tab.get_by_role("button", name="Exchange A and B").click()
        a, b = b, a
        tab.get_by_role("button", name="Reset").click()
        weights[:] = 1
        assert off(shown(tab), expected()) <= 1

        with tab.expect_download() as download:
            tab.get_by_role("button", name="Save picture").click()
        saved = read_image(download.value.path())
        mixed = shown(tab)
        assert download.value.suggested_filename == "synthetic-face.png"
        assert off(saved[: SIZE - 30], mixed[: SIZE - 30]) == 0  # the picture itself ...
        assert (saved[SIZE - 26 :, :100] != mixed[SIZE - 26 :, :100]).mean() > 0.5  # ... with a word written on it
        assert not errors


def test_it_fits_a_phone_and_talks_to_nobody_else(browser, address):
    from browser import opened

    with opened(browser, address) as (tab, errors):
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.set_viewport_size({"width": 390, "height": 844})
        tab.goto(f"{address}/index.html")
        tab.locator("#mixed[aria-busy=false]").wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        for control in tab.locator("input, button").all():  # each has a name that a screen reader says
            assert control.evaluate("c => c.ariaLabel || c.labels?.[0]?.textContent || c.textContent")
        assert all(url.startswith((address, "blob:", "data:")) for url in asked) and not errors
