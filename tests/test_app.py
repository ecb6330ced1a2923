"""The app has a number of places: who comes too many is told so, and an idle page gives its place up."""

from __future__ import annotations

import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError

import nbformat
from browser import served

from expr_lib.apps import course

APP = Path(__file__).parents[1] / "notebooks" / "app"


def visit(address: str) -> tuple[int, str]:
    """Open a page as a browser does, but without running it -> status and text."""
    try:
        with urllib.request.urlopen(address, timeout=300) as page:
            return page.status, page.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_places_are_limited_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setenv("VISITORS", "2")
    monkeypatch.setenv("IDLE_SECONDS", "4")
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print('wel' + 'come')")])
    page.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(page, tmp_path / "page.ipynb")
    with (
        served(tmp_path, "voila", str(tmp_path / "page.ipynb"), f"--Voila.config_file_paths={APP}") as address,
        ThreadPoolExecutor(5) as visitors,
    ):
        answers = list(visitors.map(visit, [address] * 5))
        assert sorted(status for status, _ in answers) == [200, 200, 503, 503, 503]
        assert all("welcome" in text for status, text in answers if status == 200)
        assert all("Traceback" not in text for _, text in answers)
        deadline = time.monotonic() + 120
        while (status := visit(address)[0]) == 503 and time.monotonic() < deadline:
            time.sleep(1)
        assert status == 200


def test_the_app_starts_with_the_limits(monkeypatch):
    import voila.app

    monkeypatch.setattr(voila.app, "main", lambda arguments: started.extend(arguments))
    started: list[str] = []
    course.app(port=1234, browser=False)
    limits = f"--Voila.config_file_paths={APP}"
    assert started == [str(APP / "mixer.ipynb"), limits, "--port=1234", "--no-browser"]
