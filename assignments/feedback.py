"""What a student gets back: own work as text, points, comments, and of a failed check the sentence that it says.

Code that is being graded reads the hidden tests while they run, and writes what it likes. So nothing that it wrote is
shown, and nothing of a hand-in becomes part of the page but as text: no markup, no link, no script.
"""

from __future__ import annotations

import builtins
import html
import os
import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell, new_output
from nbgrader.preprocessors import ClearHiddenTests
from nbgrader.utils import is_grade, is_locked

HERE = Path(__file__).resolve().parent
CELL_SECONDS = int(os.environ.get("CELL_SECONDS", 30))


class OnlyWhatChecksSay(ClearHiddenTests):
    """Feedback without hidden tests, neither as code nor in what a submission prints, raises or draws."""

    def preprocess(self, nb, resources):
        name = resources["nbgrader"]["assignment"]
        source = nbformat.read(HERE / "source" / name / f"{name}.ipynb", as_version=4)
        prose = {cell.source for cell in source.cells if cell.cell_type == "markdown"}
        nb.metadata = source.metadata
        nb.cells = [self.plain(cell, prose) for cell in nb.cells]
        return super().preprocess(nb, resources)

    def plain(self, cell, prose):
        """The cell with nothing in it that a browser would do more with than show it."""
        own = {name: value for name, value in cell.metadata.items() if name == "nbgrader" and cell.cell_type != "raw"}
        if re.search(r"[^\w .-]", str(own.get("nbgrader", {}).get("grade_id", ""))):
            own = {}
        cell.metadata = nbformat.from_dict(own)
        cell.pop("attachments", None)
        if cell.cell_type == "raw" or (cell.cell_type == "markdown" and cell.source not in prose):
            shown = html.escape(cell.source).replace("$", "&#36;").replace("\\", "&#92;").replace("`", "&#96;")
            lines = shown.replace("\n", "&#10;")  # one line: no blank one ends the block
            text = f'<pre style="white-space: pre-wrap">{lines}</pre>'
            cell = new_markdown_cell(text, metadata=cell.metadata)
        return cell

    def preprocess_cell(self, cell, resources, cell_index):
        if cell.cell_type == "code":
            said = "".join(self.said(cell, o) for o in cell.outputs if o.output_type == "error" and is_grade(cell))
            cell.outputs = [new_output("stream", name="stdout", text=said)] if said else []
        return super().preprocess_cell(cell, resources, cell_index) if is_locked(cell) else (cell, resources)

    def said(self, cell, error):
        message = error.evalue.removeprefix("AssertionError: ")
        if error.ename == "CellTimeoutError":
            return f"Stopped after {CELL_SECONDS} seconds: is there a loop that does not end?\n"
        if error.ename == "AssertionError" and len(message) > 9 and f'"{message}"' in cell.source:
            return f"Failed: {message}\n"
        return f"Failed{f' with {error.ename}' if hasattr(builtins, error.ename) else ''}.\n"
