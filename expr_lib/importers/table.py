"""A plain table: ``labels.csv`` with a column ``image``, AU columns and, where known, ``subject`` and ``split``."""

from __future__ import annotations

from collections.abc import Iterator

from expr_lib.importers.source import Face, Report, Tree, au_columns, au_name, person_of


def faces(tree: Tree, report: Report) -> Iterator[Face]:
    """Rows of ``labels.csv``. An AU column is called ``AU1``, ``AU01`` or ``AU01_r``; intensities are 0 to 5."""
    file = tree.files.get("labels.csv")
    if file is None:
        raise FileNotFoundError(f"{tree.root / 'labels.csv'}: not found; expected a table with a column image")
    person, told = person_of(tree), {"image", "subject", "split"}
    for line, row in tree.table(file, "image"):
        for column in [column for column in row if column not in told]:
            told.add(column)
            if not column.startswith("au") or au_name(column) is None:
                report.note("column that is no action unit, not used", file, 1, column)
        image = tree.find(row["image"], file, line)
        if image is None:
            continue
        au = au_columns(row, report, file, line)
        yield Face(image, row.get("subject") or person[image], au, (file, line), row.get("split", "").lower())
