"""What a reader sees of result files: the tables of the README, and model cards that a hub of models can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expr_lib.errors import InputError
from expr_lib.files import open_regular, replace_file
from expr_lib.measure.evaluate import MEASURES, SECOND, UNDEFINED

MARKERS = ("<!-- results: written by expr-lib evaluate, do not edit -->", "<!-- /results -->")
FIRST_SEEN = ("gain", "nearer", "transfer_score")
"""The columns of the short table."""
LATER = ("copy-other", "self-reconstruction", "self-reconstruction of the truth", "render of what is read")
"""Rows that only the whole table has."""


def cell(estimate: dict[str, float | None], digits: int) -> str:
    """An estimate in a table: its value and interval, or a dash if undefined."""
    value, low, high = (None if x is None else f"{round(x, digits) + 0.0:.{digits}f}" for x in estimate.values())
    return "–" if value is None else value if low is None or high is None else f"{value} ({low} – {high})"


def cells(results: dict[str, Any], beside: Sequence[dict[str, Any]] = ()) -> dict[str, dict[str, str]]:
    """The table of `results` as {row: {measure: value with its 95 % interval, or a dash}}.

    `beside` are results of other checkpoints, each shown in one more row, which names the size of the pictures and
    the number of pairs if they are not those of `results`. A measure that only some of the files have is a dash in the
    others. Raises `InputError` if they were measured on other people.
    """
    for other in beside:
        for key in ("seed", "split", "generator"):
            if other[key] != results[key]:
                name = other["about"].get("checkpoint", "another checkpoint")
                raise InputError(f"{name}: {key}: found {other[key]}, expected {results[key]} as in the table")
    known = set().union(*(one["rows"]["ours"] for one in (results, *beside)))
    columns = {name: shown for name, shown in (MEASURES | SECOND).items() if name in known}
    rows = {f"**{results['about'].get('label', 'ours')}**": results["rows"]["ours"]}
    for one in beside:
        label = one["about"].get("label", one["about"].get("checkpoint", "?"))
        units = {"size": "px", "n_pairs": "pairs"}
        differs = [f"{one[key]} {unit}" for key, unit in units.items() if one[key] != results[key]]
        rows[f"{label} ({', '.join(differs)})" if differs else label] = one["rows"]["ours"]
    rows |= {name: measured for name, measured in results["rows"].items() if name != "ours"}
    return {
        row: {name: cell(measured.get(name, UNDEFINED), digits) for name, (_, digits) in columns.items()}
        for row, measured in rows.items()
    }


def markdown(rows: dict[str, dict[str, str]]) -> str:
    """Rows of `cells` as a Markdown table; a bar in the name of a row is escaped."""
    columns = next(iter(rows.values()))
    lines = ["| | " + " | ".join(f"`{name}` {(MEASURES | SECOND)[name][0]}" for name in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    lines += ["| " + " | ".join([row.replace("|", "\\|"), *values.values()]) + " |" for row, values in rows.items()]
    return "\n".join(lines)


def markdown_table(results: dict[str, Any], beside: Sequence[dict[str, Any]] = ()) -> str:
    """The rows of `results` and `beside`, as in `cells`, in Markdown, followed by probes and command."""
    note = (
        f"{results['n_pairs']} pairs of {results['n_subjects']} held-out people in both directions, "
        f"{results['size']} px, 95 % bootstrap intervals over people."
    )
    if leak := results.get("leaks"):
        au, identity = (cell(leak[name], digits) for name, digits in (("leak_au", 2), ("leak_id", 1)))
        note += f" On {leak['n_images']} images, `leak_au` {au} (none: 0.5), "
        note += f"`leak_id` {identity} times chance (none: 1)."
    if talk := results.get("cross_talk"):
        ours, true = (cell(talk[name]["others"], 2) for name in ("network", "true render"))
        note += f" When one AU is moved alone, each other one moves by {ours} of it (in true renders {true})."
    lines = [markdown(cells(results, beside)), "", note]
    if command := results["about"].get("command"):
        lines += ["", f"Made by `{command}`."]
    return "\n".join(lines)


def folded_table(results: dict[str, Any], beside: Sequence[dict[str, Any]] = ()) -> str:
    """A table of the `FIRST_SEEN` measures and, folded below it, that of `markdown_table`."""
    rows = cells(results, beside)
    short = {
        row: {name: value for name, value in values.items() if name in FIRST_SEEN}
        for row, values in rows.items() if row not in LATER
    }  # fmt: skip
    summary = "<details><summary>All measures, every trivial answer, and how it was measured</summary>"
    return "\n".join([markdown(short), "", summary, "", markdown_table(results, beside), "", "</details>"])


def update_tables(
    document: str | Path, results: dict[str, Any], beside: Sequence[dict[str, Any]] = (), *, card: bool = False
) -> None:
    """Put the tables of `results` between the `MARKERS` of a Markdown file; of a model card, write the head too.

    What is said in words stays. `InputError` if the file has no `MARKERS`.
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
    """The text of a Markdown file and the positions of its `MARKERS`; `InputError` if it has none."""
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
    """The YAML with which the model card of the weights `name` begins, as hubs of models read it.

    Licence, task, and every measure of `results` with its value. Raises `ModuleNotFoundError` without the extra
    `train`, which contains huggingface_hub; the network is not used.
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
