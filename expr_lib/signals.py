"""Delayed signals: long work notes them and stops at the next place where this is safe."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals(*numbers: int) -> Iterator[list[int]]:
    """In this context, the signals `numbers` (SIGINT, SIGTERM, ...) are only added to the list that it yields.

    Outside the main thread, which alone receives signals, the list stays empty.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {s: signal.signal(s, lambda number, _: noted.append(number)) for s in numbers}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
