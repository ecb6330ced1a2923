"""Every figure of the course as slides: one page for each, with the section that it belongs to as its title.

    make slides       # or: python notebooks/slides.py [folder of the book] -> build/book/slides.pdf

The figures are those of the executed notebooks, so the first call takes as long as `make book`.
"""

import base64
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbformat
from matplotlib.backends.backend_pdf import PdfPages
from PIL import Image

ROOT = Path(__file__).parents[1]


def figures(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, str, Image.Image]]:
    """(notebook, section, picture) of each figure that an executed notebook shows, in order."""
    name = section = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for marks, heading in re.findall(r"^(##?) (.*)", cell.source, re.MULTILINE):
                name, section = (heading, "") if marks == "#" else (name, heading)
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                yield name, section, Image.open(io.BytesIO(base64.b64decode(png)), formats=["PNG"]).convert("RGB")


def write_slides(path: Path, notebooks: list[nbformat.NotebookNode]) -> int:
    """Write the figures to a PDF of 16:9 pages -> how many there are."""
    n = 0
    with PdfPages(path) as pages:
        for name, section, picture in (found for notebook in notebooks for found in figures(notebook)):
            page = plt.figure(figsize=(13.33, 7.5))
            page.text(0.03, 0.95, section or name, size=22, va="top")
            page.text(0.03, 0.02, name, size=11, color="#8a8a8a")
            axis = page.add_axes((0.03, 0.06, 0.94, 0.8))
            axis.imshow(picture)
            axis.set_axis_off()
            pages.savefig(page, dpi=120)
            plt.close(page)
            n += 1
    return n


if __name__ == "__main__":
    from book import course, execute

    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "book"
    out.mkdir(parents=True, exist_ok=True)
    print(write_slides(out / "slides.pdf", [execute(path, out) for path in course()]), "slides:", out / "slides.pdf")
