"""A plain table: ``labels.csv`` with the column ``image``, AU columns and, if known, subject, split and take."""

from __future__ import annotations

from collections.abc import Iterator

from expr_lib.importers.labels import au_columns
from expr_lib.importers.source import LabelledImage, Report, Tree, au_name


def labelled_images(tree: Tree, report: Report) -> Iterator[LabelledImage]:
    """Rows of ``labels.csv``. An AU column is called ``AU1``, ``AU01`` or ``AU01_r`` (0 to 5), or ``AU01_c`` (0, 1)."""
    file = tree.files.get("labels.csv")
    if file is None:
        raise FileNotFoundError(f"{tree.root / 'labels.csv'}: not found; expected a table with a column image")
    columns, rows = tree.table(file, "image")
    for column in columns:
        known = column in ("image", "subject", "split", "take")
        if not known and not (column.startswith("au") and au_name(column)):
            report.note("column that is no action unit, not used", file, 1, column)
    for line, row in rows:
        au = au_columns(row, report, file, line)
        if (image := tree.find(row["image"], file, line)) is not None:
            subject, take = row.get("subject", ""), row.get("take", "")
            take = f"{subject} {take}" if take else ""
            yield LabelledImage(image, subject, au, (file, line), row.get("split", "").lower(), take=take)
