"""What nbgrader does with `source/`. Everything it writes goes to `build/grades`, or to the folder in GRADES."""

import builtins
import os
from pathlib import Path

from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
from nbformat.v4 import new_output
from nbgrader.preprocessors import ClearHiddenTests, GetGrades
from nbgrader.utils import is_grade, is_locked

HERE = Path(__file__).resolve().parent
OUT = Path(os.environ.get("GRADES", HERE.parent / "build" / "grades")).resolve()
CELL_SECONDS = int(os.environ.get("CELL_SECONDS", 30))


class OnlyWhatChecksSay(ClearHiddenTests):
    """Feedback without hidden tests, neither as code nor in what a submission prints, raises or draws.

    Code that is being graded can read the hidden tests, so nothing that it wrote is shown: of a failed check only the
    message that stands in the check itself.
    """

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


c = get_config()  # noqa: F821 (traitlets puts it here)
c.CourseDirectory.root = str(HERE)
for step in ("release", "submitted", "autograded", "feedback"):
    setattr(c.CourseDirectory, f"{step}_directory", str(OUT / step))
c.CourseDirectory.db_url = f"sqlite:///{OUT / 'gradebook.db'}"
c.Exchange.root = str(OUT / "exchange")  # not used, but nbgrader looks for it
c.IncludeHeaderFooter.header = c.IncludeHeaderFooter.footer = ""
c.OverwriteCells.add_missing_cells = True  # a deleted test is put back
c.Execute.timeout_func = lambda cell: CELL_SECONDS if is_grade(cell) or not is_locked(cell) else 300  # imports, faces
c.Execute.iopub_timeout = 60  # a busy machine may be late with the last output of a cell
c.IgnorePattern.enabled, c.IgnorePattern.pattern = True, ".*"  # a warning on stderr costs no points
c.GenerateFeedback.preprocessors = [GetGrades, OnlyWhatChecksSay, CSSHTMLHeaderPreprocessor]
c.NbGraderAPI.log_level = "WARN"
