"""The book that `make book` builds: answers stay folded, and every link leads somewhere inside it."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("book", ROOT / "notebooks" / "book.py")
assert SPEC and SPEC.loader
book = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(book)
NAMES = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of the book, from notebooks that were not executed -> its folder."""
    out, made = tmp_path_factory.mktemp("book"), set()
    for name in NAMES:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        (out / f"{name}.html").write_text(book.page(notebook, name, NAMES, out, made), encoding="utf-8")
    index = out / "index.html"
    index.write_text(book.text_page(ROOT / "README.md", index, out, made | {index}), encoding="utf-8")
    return out


def test_answers_are_folded(pages):
    for name in NAMES:
        html = (pages / f"{name}.html").read_text(encoding="utf-8")
        answers = re.findall(r"<details><summary>Answer</summary>(.*?)</details>", html, re.DOTALL)
        assert 3 <= len(answers) <= 5 and all(len(answer) > 100 for answer in answers), name


def test_solutions_are_folded_and_no_cell_is_about_metrics_json(pages):
    for name in NAMES:
        html = (pages / f"{name}.html").read_text(encoding="utf-8")
        solutions = re.findall(r"<details><summary>Solution</summary>(.*?)</details>", html, re.DOTALL)
        cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
        tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
        in_words = sum(cell.source.count("<summary>Solution</summary>") for cell in cells)
        assert len(solutions) == tags.count("solution") + in_words and all(len(text) > 100 for text in solutions), name
        assert sum("<pre" in text for text in solutions) == tags.count("solution") >= tags.count("exercise") >= 3, name
        assert html.count("NotImplementedError") >= tags.count("exercise"), "the cells to fill in stay"
        assert "write_results(" not in re.sub(r"<[^>]+>", "", html), name


def test_links_lead_to_pages_of_the_book(pages):
    seen = list(pages.rglob("*.html"))
    assert pages / "files" / "assignments" / "STUDENTS.html" in seen
    for path in seen:
        for target in re.findall(r'(?:href|src)="(?!\w+:)([^"#]+)', path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.relative_to(pages)}: {target}"


def test_slides_have_a_page_for_each_figure(tmp_path):
    spec = importlib.util.spec_from_file_location("slides", ROOT / "notebooks" / "slides.py")
    assert spec and spec.loader
    slides = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(slides)
    picture = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(picture, "png")
    shown = nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(picture.getvalue()).decode()})
    cells = [nbformat.v4.new_markdown_cell("# 00 · Start\n\n## 1 · A section"), nbformat.v4.new_code_cell("draw()")]
    cells[1].outputs = [shown, shown]
    notebook = nbformat.v4.new_notebook(cells=cells)
    assert [found[:2] for found in slides.figures(notebook)] == [("00 · Start", "1 · A section")] * 2
    assert slides.write_slides(tmp_path / "slides.pdf", [notebook]) == 2
    assert (tmp_path / "slides.pdf").read_bytes().startswith(b"%PDF")


def test_no_solution_of_an_assignment_is_in_it(pages):
    inside = {path.name for path in pages.rglob("*") if path.is_file()}
    assert not inside & {path.name for path in (ROOT / "assignments" / "source").rglob("*.ipynb")}


def test_the_page_that_mixes_faces_comes_along_if_it_is_built(tmp_path):
    out, mixer = tmp_path / "book", tmp_path / "page"
    assert "page/index.html" not in book.first_page(out, {out / "index.html"}, mixer)
    mixer.mkdir()
    (mixer / "index.html").write_text("mixer")
    assert 'href="page/index.html"' in book.first_page(out, {out / "index.html"}, mixer)
    assert (out / "page" / "index.html").read_text() == "mixer"
