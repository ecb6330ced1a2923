"""What nbgrader does with `source/`. Everything it writes goes to `build/grades`, or to the folder in GRADES."""

import os
import sys
from pathlib import Path

from nbconvert.preprocessors import ClearMetadataPreprocessor, CSSHTMLHeaderPreprocessor
from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    GetGrades,
    IgnorePattern,
    LimitOutput,
    SaveAutoGrades,
)
from nbgrader.utils import is_grade, is_locked

HERE = Path(__file__).resolve().parent
OUT = Path(os.environ.get("GRADES", HERE.parent / "build" / "grades")).resolve()
sys.path.insert(0, str(HERE))  # the Formgrader reads this file, too

from feedback import CELL_SECONDS, OnlyWhatChecksSay  # noqa: E402
from isolated import Isolated  # noqa: E402

c = get_config()  # noqa: F821 (traitlets puts it here)
c.CourseDirectory.root = str(HERE)
for step in ("release", "submitted", "autograded", "feedback"):
    setattr(c.CourseDirectory, f"{step}_directory", str(OUT / step))
c.CourseDirectory.db_url = f"sqlite:///{OUT / 'gradebook.db'}"
c.Exchange.root = str(OUT / "exchange")  # not used, but nbgrader looks for it
c.IncludeHeaderFooter.header = c.IncludeHeaderFooter.footer = ""
c.OverwriteCells.add_missing_cells = True  # a deleted test is put back
c.Autograde.autograde_preprocessors = [
    Isolated, IgnorePattern, ClearMetadataPreprocessor, LimitOutput, SaveAutoGrades, AssignLatePenalties,
    CheckCellMetadata,
]  # fmt: skip
c.Isolated.timeout_func = lambda cell: CELL_SECONDS if is_grade(cell) or not is_locked(cell) else 300  # imports, faces
c.Isolated.iopub_timeout = 60  # a busy machine may be late with the last output of a cell
c.IgnorePattern.enabled, c.IgnorePattern.pattern = True, ".*"  # a warning on stderr costs no points
c.GenerateFeedback.preprocessors = [GetGrades, OnlyWhatChecksSay, CSSHTMLHeaderPreprocessor]
c.NbGraderAPI.log_level = "WARN"
