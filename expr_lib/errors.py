"""Errors that a user can correct, reported in one line; every other error is a bug and keeps its traceback."""

from __future__ import annotations

from typing import Any

MAX_SEED = 2**32 - 1


class InputError(ValueError):
    """A file, an option or an argument is invalid; the message is one line: what it is, found and expected."""


def check_range(config: Any, **ranges: tuple[float, float]) -> None:
    """Raise InputError for the first field of a config outside its range (bounds included; NaN is outside)."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise InputError(f"{name}: found {value}, expected {low:,} to {high:,}")
