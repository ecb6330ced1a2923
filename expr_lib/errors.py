"""What a user can set right, told in one line; every other error is a bug and keeps its traceback."""

from __future__ import annotations

from typing import Any

MAX_SEED = 2**32 - 1


class InputError(ValueError):
    """A file, an option or an argument is not as it must be: one line with what, what was found, what was expected."""


def check_range(config: Any, **ranges: tuple[float, float]) -> None:
    """InputError for the first field of a config that lies outside its range, ends included; NaN lies in no range."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise InputError(f"{name}: found {value}, expected {low:,} to {high:,}")
