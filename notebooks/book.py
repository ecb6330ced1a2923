"""The course as a web site: every notebook executed with a learner's defaults, as pages with figures, and a first page.

    make book        # or: python notebooks/book.py [folder], build/book when not given

A notebook that was executed before and has not changed since is not executed again. The pages need no server: open
`index.html`, or publish the folder. Widgets need a kernel; on the pages each stands as the picture that it showed.
Formulae are drawn by MathJax, which the reader's browser loads. Files of the project to which a page links come along.
The page that mixes faces in the browser comes along if `make page` has built it; it alone needs a file server.
"""

import base64
import os
import re
import shutil
import sys
from html import escape
from pathlib import Path

import nbformat
import papermill
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html

ROOT = Path(__file__).parents[1]
COURSE = ["00", "01", "02", "03", "04", "05", "06", "10", "11", "07", "08", "09"]  # the order of the map of the course
LINK = re.compile(r'(href|src)="(?!\w+:)([^"#]+)(#[^"]*)?"')
WIDGET = "application/vnd.jupyter.widget-view+json"
PAGE = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{}</title><style>body {{ font: 17px/1.6 system-ui, sans-serif; max-width: 1100px;
margin: 2em auto; padding: 0 1em; color: #222 }} img {{ max-width: 100% }} table {{ border-collapse: collapse;
display: block; overflow-x: auto; font-size: 14px }} td, th {{ padding: 5px 8px; border-bottom: 1px solid #ccc;
text-align: left }} pre, code {{ background: #f4f4f4 }} pre {{ padding: 1em; overflow-x: auto
}}</style><body>{}</body></html>"""
NAVIGATION = '<nav style="font: 15px system-ui, sans-serif; max-width: 1000px; margin: 1em auto">{}</nav>'


def execute(source: Path, out: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; from an earlier run where the source is older than that."""
    kept = out / "executed" / source.name
    if not kept.exists() or kept.stat().st_mtime < source.stat().st_mtime:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial.ipynb")
        papermill.execute_notebook(source, partial, cwd=source.parent, kernel_name="python3")
        partial.replace(kept)
    return nbformat.read(kept, as_version=4)


def pictures(state: dict, model: str) -> list[tuple[str, str]]:
    """What a widget shows: the images among the widget and its children, as (caption, base64 PNG or GIF), in order."""
    widget, caption, found = state.get(model, {}), "", list[tuple[str, str]]()
    if widget.get("model_name") == "ImageModel":
        return [("", buffer["data"]) for buffer in widget.get("buffers", [])]
    for child in widget.get("state", {}).get("children", []):
        name = child.removeprefix("IPY_MODEL_")
        if state.get(name, {}).get("model_name") == "LabelModel":  # the caption of what follows it
            caption = state[name]["state"].get("value", "")
        found += [(own or caption, data) for own, data in pictures(state, name)]
    return found


def freeze_widgets(notebook: nbformat.NotebookNode) -> None:
    """Put the pictures of a widget in its place: a page has no kernel that could answer its sliders."""
    state = notebook.metadata.pop("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):
                images = ""
                for caption, data in pictures(state, output.data.pop(WIDGET)["model_id"]):
                    kind = "gif" if base64.b64decode(data[:8]).startswith(b"GIF") else "png"
                    image = f'<img src="data:image/{kind};base64,{data}" style="display: block; height: 150px">'
                    images += f'<figure style="margin: 0">{escape(caption)}{image}</figure>'
                output.data["text/html"] = (
                    "<p><i>Interactive: in JupyterLab it has controls.</i></p>"
                    f'<div style="display: flex; flex-wrap: wrap; gap: 12px">{images}</div>'
                )


def fold(notebook: nbformat.NotebookNode) -> None:
    """Solutions become text that a reader unfolds; the cell that writes the numbers for the tests is left out."""
    cells = notebook.cells
    for k, cell in enumerate(cells):
        if "solution" in cell.metadata.get("tags", []):
            source = f"<details><summary>Solution</summary>\n\n```python\n{cell.source}\n```\n\n</details>"
            cells[k] = nbformat.v4.new_markdown_cell(source, id=cell.id)
            if cells[k - 1].source.startswith("The next cell is a solution."):
                cells[k - 1].source = ""
    notebook.cells = [c for c in cells if c.source and "metrics" not in c.metadata.get("tags", [])]


def with_links(html: str, base: Path, here: Path, out: Path, made: set[Path]) -> str:
    """Links to files of the project, relative to `base`, lead to where they are in the book; `here` is the page.

    Markdown becomes a page, everything else is copied. Notebooks that are not of the course hold solutions: no link.
    """

    def lead(match: re.Match) -> str:
        source = (base / match[2]).resolve()
        if not source.is_file() or not source.is_relative_to(ROOT):
            return match[0]
        if source.suffix == ".ipynb" and source.parent != ROOT / "notebooks":
            return ""
        inside = source.relative_to(ROOT)
        place = {".ipynb": Path(f"{source.stem}.html"), ".md": "files" / inside.with_suffix(".html")}.get(
            source.suffix, "files" / inside
        )
        place = out / ("index.html" if inside == Path("README.md") else place)
        if source.suffix != ".ipynb" and place not in made:
            made.add(place)
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".md":
                place.write_text(text_page(source, place, out, made), encoding="utf-8")
            else:
                shutil.copyfile(source, place)
        return f'{match[1]}="{Path(os.path.relpath(place, here.parent)).as_posix()}{match[3] or ""}"'

    return LINK.sub(lead, html)


def page(notebook: nbformat.NotebookNode, name: str, names: list[str], out: Path, made: set[Path]) -> str:
    """HTML of one notebook, with links to the first page, the one before and the next."""
    freeze_widgets(notebook)
    fold(notebook)
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    html, _ = HTMLExporter().from_notebook_node(notebook, {"metadata": {"name": name}})
    at = names.index(name)
    links = [("index", "Contents"), *((n, n.replace("_", " ")) for n in names[max(0, at - 1) : at + 2] if n != name)]
    navigation = NAVIGATION.format(" · ".join(f'<a href="{n}.html">{text}</a>' for n, text in links))
    html = with_links(html, ROOT / "notebooks", out / f"{name}.html", out, made)
    html = re.sub(r"(<body[^>]*>)", lambda match: match[1] + navigation, html, count=1)
    return html.replace("</body>", navigation + "</body>")


def text_page(source: Path, here: Path, out: Path, made: set[Path]) -> str:
    """HTML of a Markdown file; that of the README is the first page of the book."""
    text = re.sub(r"\A---\n.*?\n---\n", "", source.read_text(encoding="utf-8"), flags=re.DOTALL)  # head of a model card
    html = re.sub(r'<a class="anchor-link".*?</a>', "", markdown2html(text))
    title = re.search(r"^# (.*)", text, re.MULTILINE)
    html = with_links(html, source.parent, here, out, made)
    if here != out / "index.html":
        contents = Path(os.path.relpath(out / "index.html", here.parent)).as_posix()
        html = NAVIGATION.format(f'<a href="{contents}">Contents</a>') + html
    return PAGE.format(title[1] if title else source.stem, html)


def first_page(out: Path, made: set[Path], mixer: Path = ROOT / "build" / "page") -> str:
    """HTML of the README, with a link to the page that mixes faces if that is built; it is copied."""
    html = text_page(ROOT / "README.md", out / "index.html", out, made)
    if not (mixer / "index.html").exists():
        return html
    shutil.copytree(mixer, out / "page", dirs_exist_ok=True)
    link = NAVIGATION.format('<a href="page/index.html">Mix faces in your browser</a>')
    return html.replace("<body>", f"<body>{link}", 1)


def course() -> list[Path]:
    """All notebooks in the order of the course map."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"), key=lambda path: COURSE.index(path.stem[:2]))


def main(out: Path) -> None:
    sources = course()
    names, index = [source.stem for source in sources], out / "index.html"
    made = {index}
    for source in sources:
        print(source.name, flush=True)
        html = page(execute(source, out), source.stem, names, out, made)
        (out / f"{source.stem}.html").write_text(html, encoding="utf-8")
    index.write_text(first_page(out, made), encoding="utf-8")
    print(index)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "book")
