"""What a reader sees of result files: the tables of the README, and model cards that a hub of models can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expr_lib.errors import InputError
from expr_lib.files import open_regular, replace_file
from expr_lib.measure.evaluate import MARKERS, markdown_table

FIRST_SEEN = ("gain", "nearer", "transfer_score")
"""The columns of the short table."""
LATER = ("copy-other", "self-reconstruction", "self-reconstruction of the truth", "render of what is read")
"""Rows that only the whole table has."""


def folded_table(results: dict[str, Any], beside: Sequence[dict[str, Any]] = ()) -> str:
    """A table of the `FIRST_SEEN` measures and, folded below it, the one of :func:`evaluate.markdown_table`."""
    whole = markdown_table(results, beside)
    rows = [line.split("|")[1:-1] for line in whole.partition("\n\n")[0].splitlines()]
    columns = [0, *(k for k, name in enumerate(rows[0]) if any(f"`{first}`" in name for first in FIRST_SEEN))]
    short = ["|".join(["", *(row[k] for k in columns), ""]) for row in rows if row[0].strip() not in LATER]
    summary = "<details><summary>All measures, every trivial answer, and how it was measured</summary>"
    return "\n".join([*short, "", summary, "", whole, "", "</details>"])


def update_tables(
    document: str | Path, results: dict[str, Any], beside: Sequence[dict[str, Any]] = (), *, card: bool = False
) -> None:
    """Put the tables of ``results`` between the `MARKERS` of a Markdown file; of a model card, write the head too.

    What is said in words stays. ``InputError`` if the file has no `MARKERS`.
    """
    document = Path(document)
    text, begin, end = find_table(document)
    before = text[:begin]
    if card:
        words = before.partition("\n---\n")[2] if before.startswith("---\n") else before
        before = head(document.stem, results) + words
    new = f"{before}{MARKERS[0]}\n{folded_table(results, beside)}\n{text[end:]}"
    replace_file(document, new.encode())


def find_table(readme: Path) -> tuple[str, int, int]:
    """The text of a Markdown file and the positions of its ``MARKERS``; ``InputError`` if it has none."""
    try:
        with open_regular(readme) as file:
            text = file.read().decode()
    except UnicodeDecodeError:
        raise InputError(f"{readme}: found bytes that are not UTF-8, expected a Markdown file") from None
    begin, end = (text.find(marker) for marker in MARKERS)
    if not 0 <= begin < end:
        raise InputError(f"{readme}: found no pair of lines {MARKERS[0]!r} and {MARKERS[1]!r}, expected one")
    return text, begin, end


def head(name: str, results: dict[str, Any]) -> str:
    """The YAML with which the model card of the weights ``name`` begins, as hubs of models read it.

    Licence, task, and every measure of ``results`` with its value. Raises ``ModuleNotFoundError`` without the extra
    ``train``, whose packages bring huggingface_hub; nothing is sent or fetched.
    """
    from huggingface_hub import EvalResult, ModelCardData

    people = f"{results['n_pairs']} pairs of {results['n_subjects']} held-out rendered people, {results['size']} px"
    measured = [
        EvalResult(
            task_type="image-to-image", task_name="Facial expression transfer",
            dataset_type="rendered-faces", dataset_name=people,
            metric_type=measure, metric_name=measure, metric_value=round(estimate["value"], 4),
        )
        for measure, estimate in results["rows"]["ours"].items() if estimate["value"] is not None
    ]  # fmt: skip
    about = ModelCardData(
        license="apache-2.0", library_name="expr-lib", pipeline_tag="image-to-image", model_name=name,
        datasets=["rendered-faces"], tags=["facial-expression", "action-units"], eval_results=measured,
    )  # fmt: skip
    return f"---\n{about.to_yaml()}\n---\n"
