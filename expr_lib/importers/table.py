"""A plain table: `labels.csv` with the column `image`, AU columns and, if known, subject, split and take."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from expr_lib.films import ENDINGS
from expr_lib.importers.labels import au_columns
from expr_lib.importers.source import LabelledImage, Report, Tree, au_name


def labelled_images(tree: Tree, report: Report) -> Iterator[LabelledImage]:
    """Rows of `labels.csv`. An AU column is called `AU1`, `AU01` or `AU01_r` (0 to 5), or `AU01_c` (0, 1).

    If there is a column `frame`, counted from 1, `image` may name a film. Without a column `take` a film is one.
    """
    file = tree.files.get("labels.csv")
    if file is None:
        raise FileNotFoundError(f"{tree.root / 'labels.csv'}: not found; expected a table with a column image")
    columns, rows = tree.table(file, "image")
    for column in columns:
        known = column in ("image", "frame", "subject", "split", "take")
        if not known and not (column.startswith("au") and au_name(column)):
            report.note("column that is no action unit, not used", file, 1, column)
    for line, row in rows:
        au, name = au_columns(row, report, file, line), row["image"]
        if "frame" in row and name.lower().endswith(ENDINGS):
            name = f"{name}/{row['frame']}.png"
        if (image := tree.find(name, file, line)) is not None:
            film = posixpath.dirname(image)
            subject, take = row.get("subject", ""), row.get("take", "") or (film if film in tree.films else "")
            take = f"{subject} {take}" if take else ""
            yield LabelledImage(image, subject, au, (file, line), row.get("split", "").lower(), take=take)
