"""A real browser before a real server: what the tests of the widgets and their benchmark share."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Browser, Page, Playwright

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PATIENCE = 120_000  # milliseconds


def chromium(playwright: Playwright) -> Path | None:
    """The browser of this machine, or the one that Playwright installed; None where there is neither."""
    path = Path(next(filter(None, map(shutil.which, CHROMIUM)), playwright.chromium.executable_path))
    return path if path.exists() else None


@contextmanager
def served(folder: Path, *command: str, threads: str = "1") -> Iterator[str]:
    """A Jupyter server or Voila on a free port -> its address; its settings and traces stay in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR")
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment |= {name: str(folder / name.lower()) for name in names} | {"OMP_NUM_THREADS": threads}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [Path(sys.executable).parent / command[0], *command[1:], "--no-browser", f"--port={port}"],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            for _ in range(PATIENCE // 200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *message: object) -> None:
        pass


@contextmanager
def served_files(folder: Path) -> Iterator[str]:
    """A plain file server for `folder`, as `python -m http.server` -> its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def opened(browser: Browser, address: str) -> Iterator[tuple[Page, list[str]]]:
    """A page 1280 pixels wide, and what goes wrong on it. Without a network, fonts of other hosts may be missing."""
    page, errors = browser.new_page(viewport={"width": 1280, "height": 900}), list[str]()
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda message: (
            errors.append(f"{message.text} {message.location}")
            if message.type == "error" and not ("ERR_" in message.text and address not in str(message.location))
            else None
        ),
    )
    yield page, errors
    page.close()
