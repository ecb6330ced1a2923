"""Write the numbers of the model cards: the head that model hubs read, and the table of measures.

    python benchmarks/cards.py       # seconds; part of `make results`

Reads `benchmarks/results`, and replaces what stands between the markers in `expr_lib/weights/*.md`.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from expr_lib.files import replace_file
from expr_lib.measure.evaluate import MEASURES

ROOT = Path(__file__).parents[1]
AIMS = {
    "gain": "at least 0.45", "nearer": "0.95", "transfer_score": "0.65", "au_icc": "0.80",
    "own_expression_left": "at most 0.10", "rest_left": "at most 0.10", "identity_kept": "0.99", "ssim": "0.955",
    "psnr": "34", "sharpness": "at least 0.8",
}  # fmt: skip
TABLES = {
    "moved-128": {
        "card": {"this checkpoint": "moved-128", "at 256 px": "moved-128-at-256", "first generation": "swap-64"},
        "scratch": {"from nothing": "scratch-64", "moved-64": "moved-64", "moved-128": "moved-128"},
    },
    "moved-64": {"card": {"this checkpoint": "moved-64", "first generation": "swap-64"}},
}
"""{checkpoint: {marker: {column: result file}}}; the first column's trivial answers stand beside it."""


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def table(columns: dict[str, str]) -> str:
    """A row for each measure: the aim, each column's value with its interval, copy-input and the true render."""
    found = {column: results(name) for column, name in columns.items()}
    first = next(iter(found.values()))
    shown = {column: one["rows"]["ours"] for column, one in found.items()}
    shown |= {row: first["rows"][row] for row in ("copy-input", "true render")}
    rows = {name: {column: measured.get(name) for column, measured in shown.items()} for name in MEASURES}
    rows["psnr of self-reconstruction"] = {
        column: one["rows"]["self-reconstruction"]["psnr"] for column, one in found.items()
    }
    rows["leak_au"] = {column: (one["leaks"] or {}).get("leak_au") for column, one in found.items()}
    lines = ["| measure | aim | " + " | ".join(shown) + " |", "|---" * (2 + len(shown)) + "|"]
    for name, cells in rows.items():
        digits = MEASURES.get(name, ("", 1 if "psnr" in name else 2))[1]
        lines.append(
            f"| `{name}` | {AIMS.get(name, '')} | " + " | ".join(cell(cells.get(x), digits) for x in shown) + " |"
        )
    return "\n".join(lines)


def cell(estimate: dict[str, float | None] | None, digits: int) -> str:
    if estimate is None or estimate["value"] is None:
        return "–"
    value, low, high = (f"{round(x, digits) + 0.0:.{digits}f}" for x in estimate.values() if x is not None)
    return f"{value} ({low} to {high})"


def head(name: str) -> str:
    """What model hubs read."""
    found = results(name)
    metrics = [
        {"type": measure, "value": round(estimate["value"], 3), "name": measure}
        for measure, estimate in found["rows"]["ours"].items()
        if estimate["value"] is not None
    ]
    data = {
        "type": "rendered-faces",
        "name": f"{found['n_subjects']} held-out rendered people, {found['n_pairs']} pairs",
    }
    about = {
        "license": "apache-2.0", "library_name": "expr-lib", "pipeline_tag": "image-to-image",
        "tags": ["facial-expression-transfer", "action-units", "disentanglement"],
        "model-index": [
            {"name": name, "results": [{"task": {"type": "image-to-image"}, "dataset": data, "metrics": metrics}]}
        ],
    }  # fmt: skip
    return f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n"


def written(name: str) -> str:
    """The text of a card with today's numbers."""
    text = re.sub(r"\A---\n.*?\n---\n", "", (ROOT / "expr_lib" / "weights" / f"{name}.md").read_text(), flags=re.DOTALL)
    for marker, columns in TABLES[name].items():
        begin, end = f"<!-- {marker}: written by benchmarks/cards.py -->", f"<!-- /{marker} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table(columns)}\n{end}{rest.split(end)[1]}"
    return head(name) + text


def main() -> None:
    for name in TABLES:
        path = ROOT / "expr_lib" / "weights" / f"{name}.md"
        replace_file(path, written(name).encode())
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
