"""Submissions run in `sandbox.py`; nbgrader, outside of it, sends one cell after another and hears what comes back.

A check is sent when the student's cells above it have run. Until then it is in no file and no process that these could
reach; the gradebook, the sources and other hand-ins never are.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL

import psutil
import sandbox
import zmq
from jupyter_client.manager import AsyncKernelManager
from nbgrader.preprocessors import Execute
from nbgrader.utils import is_grade

HERE = Path(__file__).resolve().parent
TOTAL_SECONDS = int(os.environ.get("TOTAL_SECONDS", 900))
MAX_MESSAGE, MAX_OUTPUT, MAX_ERRORS = 16 << 20, 32 << 20, 200


class Kernel(AsyncKernelManager):
    """A kernel in a sandbox: no network leads there, so it is reached through files in a folder that both see."""

    kind = ""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        Kernel.kind = Kernel.kind or sandbox.best()
        self.shared = tempfile.mkdtemp(prefix="grade-")
        self.transport, self.ip = "ipc", f"{self.shared}/k"
        self.connection_file = f"{self.shared}/kernel.json"
        self.context.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        self.over = threading.Event()

    async def _async_launch_kernel(self, kernel_cmd: list[str], **options: object) -> None:
        # The command of the student's own kernel specification is not used.
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", self.connection_file]
        command += ["--HistoryManager.enabled=False"]
        hide = [
            str(HERE),
            str(HERE.parent / "build"),
            *(os.environ[n] for n in ("GRADES", "SUBMISSIONS") if n in os.environ),
        ]
        data = str(options.get("cwd") or HERE)
        options |= {"cwd": self.shared, "env": dict(os.environ), "stdout": DEVNULL, "stderr": DEVNULL}
        command = [sys.executable, str(HERE / "sandbox.py"), self.kind, self.shared, data, *hide, "--", *command]
        await super()._async_launch_kernel(command, **options)
        threading.Thread(target=self.watch, args=(self.provisioner.pid,), daemon=True).start()

    def watch(self, process: int) -> None:
        """End a submission that takes too long, fills the shared folder, or takes too much memory altogether."""
        end, most = time.monotonic() + TOTAL_SECONDS, sandbox.MEMORY_GB << 30
        while time.monotonic() < end and folder_size(self.shared) < sandbox.FILES and memory(process) < most:
            if self.over.wait(0.25):
                return
        try:
            os.killpg(process, signal.SIGTERM if self.kind == "limits" else signal.SIGKILL)
        except ProcessLookupError:
            pass

    async def _async_cleanup_resources(self, restart: bool = False) -> None:
        await super()._async_cleanup_resources(restart)
        if not restart:
            self.over.set()
            shutil.rmtree(self.shared, ignore_errors=True)


def folder_size(folder: str) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += 4096 + os.lstat(os.path.join(path, name)).st_blocks * 512  # an empty file takes room, too
            except OSError:
                continue
    return total


def memory(process: int) -> int:
    """Bytes that a process and all that it has started hold; on Linux what they share counts once."""
    total = 0
    with suppress(psutil.Error):
        top = psutil.Process(process)
        for one in (top, *top.children(recursive=True)):
            with suppress(psutil.Error):
                found = one.memory_full_info()
                total += getattr(found, "pss", found.rss)
    return total


class Isolated(Execute):
    """Runs a notebook in the sandbox; what a flood of output holds beyond a limit is not kept."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **{"kernel_manager_class": Kernel} | options)
        self.heard = self.errors = 0

    def preprocess(self, nb, resources=None, km=None):
        self.heard = self.errors = 0
        return super().preprocess(nb, resources, km)

    def preprocess_cell(self, cell, resources, index):
        self._check_assign_resources(resources)
        return self.execute_cell(cell, index, store_history=not is_grade(cell)), self.resources  # no check in `In`

    def process_message(self, msg, cell, cell_index):
        kind = msg["msg_type"]
        if kind == "error":
            self.errors += 1
            if self.errors > MAX_ERRORS and any(o.output_type == "error" for o in cell.outputs):
                return None
        elif kind not in ("status", "execute_input"):
            self.heard += len(str(msg["content"])) + sum(map(len, msg.get("buffers", [])))
            if self.heard > MAX_OUTPUT:
                return None
        return super().process_message(msg, cell, cell_index)
