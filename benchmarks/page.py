"""How long from a slider to the new picture on the web page that computes in the browser? Measured in Chromium.

    make page && python benchmarks/page.py            # two minutes

Every round moves one slider by a step and waits for the picture; then the same picture is made by torch on one thread,
in turn, so that both see the same load of the machine. The first three rounds do not count. Beside it, once each: the
time from opening the page to its first picture, and the bytes that the browser loads for it.
Writes benchmarks/results/page.json and prints the numbers.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import FLAGS, chromium, opened, served_files
from faces import machine

from expr_lib.datasets import to_float
from expr_lib.images import read_image
from expr_lib.measure.evaluate import write_results
from expr_lib.swap import load

ROOT = Path(__file__).parents[1]
ROUNDS, WARM = 23, 3
MEASURE = """([name, value]) => new Promise((resolve) => {
    const slider = document.getElementById(name), canvas = document.getElementById("mixed");
    const start = performance.now();
    new MutationObserver((_, watch) => {
        if (canvas.ariaBusy === "false") { watch.disconnect(); resolve(performance.now() - start); }
    }).observe(canvas, {attributes: true, attributeFilter: ["aria-busy"]});
    slider.value = value;
    slider.dispatchEvent(new Event("input"));
})"""


def main() -> None:
    folder = ROOT / "build" / "page"
    if not (folder / "index.html").exists():
        raise SystemExit("No page here: `make page` builds it.")
    torch.set_num_threads(1)
    about, swapper = json.loads((folder / "about.json").read_text()), load()
    face = to_float(torch.from_numpy(read_image(folder / about["faces"][0]))).permute(2, 0, 1)[None]  # (1, 3, S, S)
    found: dict[str, list[float]] = {"page": [], "torch": []}
    with torch.inference_mode(), sync_playwright() as playwright:
        if (path := chromium(playwright)) is None:
            raise SystemExit("No Chromium here: install it (`apt-get install chromium`) and run this again.")
        f_f, f_r = swapper.encode(face)
        with (
            playwright.chromium.launch(executable_path=path, args=FLAGS) as browser,
            served_files(folder) as address,
            opened(browser, address) as (page, errors),
        ):
            began = time.perf_counter()
            page.goto(f"{address}/index.html")
            page.locator("#mixed[aria-busy=false]").wait_for()
            first = time.perf_counter() - began
            for k in range(ROUNDS):
                found["page"].append(page.evaluate(MEASURE, ["AU12", k / ROUNDS]))
                began = time.perf_counter()
                swapper.generate(f_f, f_r)
                found["torch"].append(1000 * (time.perf_counter() - began))
            assert not errors, errors
    results = {"machine": machine(), "size": about["size"], "rounds": ROUNDS - WARM, "first_picture_s": round(first, 1)}
    results["megabytes"] = round(sum(x.stat().st_size for x in folder.iterdir() if x.suffix != ".txt") / 1e6, 1)
    for name, times in found.items():
        kept = times[WARM:]
        results[f"{name}_ms"] = {"median": round(statistics.median(kept)), "slowest": round(max(kept))}
        print(f"{name:6} {statistics.median(kept):5.0f} ms a picture (median), {max(kept):.0f} ms the slowest")
    print(f"first picture after {first:.1f} s, {results['megabytes']} MB loaded")
    write_results(ROOT / "benchmarks" / "results" / "page.json", results)


if __name__ == "__main__":
    main()
