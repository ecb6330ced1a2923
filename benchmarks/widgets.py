"""How long from a slider to the new picture? Measured in Chromium, on a page that Voila serves.

    python benchmarks/widgets.py            # two minutes

Every round moves a slider by one step (or picks a face, or a point) and waits until the picture on the page has another
source: kernel, sockets and browser are all in it. The first three rounds do not count. The faces have 256 pixels, and
the network is the one that is shipped.
Writes benchmarks/results/widgets.json and prints the table.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import nbformat
import torch
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import FLAGS, chromium, opened, served
from faces import processor

ROUNDS, WARM = 23, 3
CODE = """
import ipywidgets as widgets
import torch
from expr_lib.faces.render import load_renderer
from expr_lib.faces.plan import FacesConfig, plan_faces
from expr_lib.measure.judges import load_judges
from expr_lib.swap import load
from expr_lib.apps.widgets import EncodedFaces, FaceExplorer, FeatureMap, LatentMixer, SwapExplorer

renderer = load_renderer()
plan = plan_faces(FacesConfig(n_subjects=12, images_per_subject=1, size=256, seed=4610))
faces = EncodedFaces(load(), plan, renderer, load_judges().au)
points = torch.rand(200, 2).numpy()
chart = FeatureMap(points, faces.pixels[torch.arange(200) % 12], [str(k) for k in range(200)])
widgets.VBox([FaceExplorer(plan, renderer), LatentMixer(faces), SwapExplorer(faces), chart])
"""
# what is acted on (a slider by its description, or buttons), and the picture that must change
ACTIONS = {
    "FaceExplorer: an action unit": ("AU26 jaw drop", 0),
    "FaceExplorer: the pose": ("turn (°)", 0),
    "LatentMixer: all together": ("all together, from a to b", 3),
    "LatentMixer: an action unit": ("AU26 jaw drop", 3),
    "SwapExplorer: another face": (None, 0),
    "FeatureMap: another point": (None, 0),
}
MEASURE = """([box, description, picture, round]) => new Promise((resolve, reject) => {
    const image = box.querySelectorAll("img.widget-image")[picture];
    let start;
    const watch = new MutationObserver(() => { watch.disconnect(); resolve(performance.now() - start); });
    watch.observe(image, {attributes: true, attributeFilter: ["src"]});
    setTimeout(() => reject("the picture did not change"), 20000);
    let act;
    if (description) {
        const labels = [...box.querySelectorAll(".widget-slider label")];
        const handle = labels.find(x => x.textContent === description).parentElement.querySelector(".noUi-handle");
        const key = round % 2 ? "ArrowLeft" : "ArrowRight";
        act = () => handle.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
    } else {
        const buttons = box.querySelectorAll("button.widget-toggle-button");
        act = () => buttons[1 + round % 7].click();
    }
    start = performance.now();
    act();
})"""


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        if (path := chromium(playwright)) is None:
            raise SystemExit("No Chromium here: install it (`apt-get install chromium`) and run this again.")
        page_of = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
        nbformat.write(page_of, notebook := Path(folder) / "widgets.ipynb")
        with (
            playwright.chromium.launch(executable_path=path, args=FLAGS) as browser,
            served(Path(folder), "voila", str(notebook), threads="2") as address,
            opened(browser, address) as (page, errors),
        ):
            page.goto(address)
            page.locator(".expr").nth(3).wait_for()
            page.wait_for_timeout(1000)
            print("| what is moved | median (ms) | slowest (ms) |\n|---|---:|---:|")
            for name, (description, picture) in ACTIONS.items():
                kinds = ("FaceExplorer", "LatentMixer", "SwapExplorer", "FeatureMap")
                box = page.locator(".expr").nth(kinds.index(name.split(":")[0])).element_handle()
                found = []
                for k in range(ROUNDS):
                    found.append(page.evaluate(MEASURE, [box, description, picture, k]))
                    page.wait_for_timeout(800)  # the rest of the widget is drawn, as under a calm hand
                kept = [round(x, 1) for x in found[WARM:]]
                rows.append({"moved": name, "median_ms": statistics.median(kept), "slowest_ms": max(kept)})
                print("| {moved} | {median_ms:.0f} | {slowest_ms:.0f} |".format(**rows[-1]), flush=True)
            assert not errors, errors
    path = Path(__file__).parent / "results" / "widgets.json"
    about = {"processor": processor(), "torch": torch.__version__, "rounds": ROUNDS - WARM, "pixels": 256}
    path.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
