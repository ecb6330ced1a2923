"""A tiny data set on disk: flat faces whose mouth opens with AU26, so that there is something to learn."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from expr_lib.datasets import FaceData

TINY_AUS = ("AU1", "AU12", "AU26")


def write_tiny_faces(folder: Path, size: int = 16, subjects: int = 8, per_subject: int = 4) -> Path:
    """8 subjects x 4 images: the subject is a colour, AU1 a bright bar above, AU26 a dark bar below."""
    folder.mkdir(parents=True)
    rng, n = np.random.default_rng(0), subjects * per_subject
    subject = np.repeat(np.arange(subjects), per_subject)
    color = rng.integers(60, 200, (subjects, 1, 1, 3))[subject]
    images = np.broadcast_to(color, (n, size, size, 3)).astype(np.uint8)
    au = (rng.uniform(1, 5, (n, 3)) * (rng.random((n, 3)) < 0.5)).astype(np.float32).round(3)
    for i in range(n):
        images[i, 2 : 2 + round(au[i, 0]), 4:12] = 255
        images[i, 10 : 10 + round(au[i, 2]), 4:12] = 0
    split = np.where(subject < subjects - 2, "train", "val")
    np.save(folder / "images.npy", images)
    rows = [",".join([str(s), p, *map(str, a)]) for s, p, a in zip(subject, split, au.tolist(), strict=True)]
    (folder / "labels.csv").write_text("\n".join([",".join(["subject", "split", *TINY_AUS]), *rows]) + "\n")
    sha = {f: hashlib.sha256((folder / f).read_bytes()).hexdigest() for f in ("images.npy", "labels.csv")}
    meta = {"format": 1, "generator": "test", "config": {}, "au_names": TINY_AUS, "size": size, "rows": n}
    meta["sha256"] = sha
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 faces of 16 px: 8 subjects (two of them held out), three AUs."""
    return write_tiny_faces(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def tiny_faces(tiny_folder: Path) -> FaceData:
    return FaceData.open(tiny_folder)


@pytest.fixture
def no_figure_stays_open() -> Iterator[None]:
    yield
    import matplotlib.pyplot as plt  # slow to import

    plt.close("all")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tables that tests record (`record_property("table", text)`) are shown below the results, whoever ran them."""
    reports = [report for kind in ("passed", "failed", "") for report in terminalreporter.stats.get(kind, [])]
    tables = [value for r in reports for key, value in r.user_properties if key == "table"]
    parts: dict[str, list[str]] = {}  # tables of one title, from several tests, are one
    for title, *lines in (table.splitlines() for table in sorted(set(tables))):
        parts.setdefault(title, []).extend(lines)
    for title, lines in parts.items():
        terminalreporter.section(title)
        terminalreporter.write_line("\n".join(lines))
