"""Detecting sources whose intensities have a wrong scale.

In a table in percent, or one that a spreadsheet saved without decimal points, all labels except the zeros would be
invalid. An import therefore stops if most of the labels that are not 0 are invalid: of one AU in one file or in all
files, if at least three are, or of all AUs together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from expr_lib.errors import InputError

ROWS = 3
"""Smallest number of invalid labels of one AU that can stop an import."""


@dataclass
class Tally:
    """Numbers of labels of one AU that are not 0, and of those among them that are invalid."""

    others: int = 0
    bad: int = 0
    largest: float = 0.0  # absolute value of the bad ones
    first: str = ""  # place and content of the first bad label

    def add(self, other: Tally) -> None:
        self.others += other.others
        self.bad += other.bad
        self.largest = max(self.largest, other.largest)
        self.first = self.first or other.first


@dataclass
class Scale:
    """Tallies by AU, for the file that is being read and for all files before it."""

    root: Path = Path()
    file: str = ""
    limit: float = 5.0  # the largest value that the form allows
    fractions: int = 0  # good values between 0 and 1
    largest: float = 0.0  # of the good values
    here: dict[str, Tally] = field(default_factory=dict)
    before: dict[str, Tally] = field(default_factory=dict)

    def saw(self, file: str, line: int, name: str, cell: str, value: float, limit: float, good: bool) -> None:
        """Count a label; `value` is its number (NaN if it is none), `limit` the largest that the form allows."""
        if file != self.file:
            self.end_of_file()
            self.file, self.limit = file, limit
        if value == 0:
            return
        tally = self.here.setdefault(name, Tally())
        tally.others += 1
        if good:
            self.fractions += 0 < value < 1
            self.largest = max(self.largest, value * 5 / limit)
        else:
            tally.bad += 1
            tally.largest = max(tally.largest, abs(value))  # NaN is never larger
            place = f"line {line}, " if line else ""
            tally.first = tally.first or f"{file}: {place}column {name}: found {cell[:40]!r}, expected 0 to {limit:g}"

    def end_of_file(self) -> None:
        """Check each AU of the file; `InputError` if its scale is wrong."""
        largest = max((tally.largest for tally in self.here.values()), default=0.0)
        for name, tally in self.here.items():
            self.stop_where_most_are_bad(tally, ROWS, largest)
            self.before.setdefault(name, Tally()).add(tally)
        self.here = {}

    def end(self) -> None:
        """Check each AU over all files, and all AUs together; `InputError` if a scale is wrong."""
        self.end_of_file()
        everything = Tally()
        for tally in self.before.values():
            everything.add(tally)
        for tally in self.before.values():
            self.stop_where_most_are_bad(tally, ROWS, everything.largest)
        self.stop_where_most_are_bad(everything, 2, everything.largest)

    def looks_small(self) -> bool:
        """Whether all intensities are at most 1 and many are fractions, as on a scale from 0 to 1."""
        return self.fractions >= 10 and self.largest <= 1

    def stop_where_most_are_bad(self, tally: Tally, at_least: int, largest: float) -> None:
        if tally.bad >= at_least and 2 * tally.bad > tally.others:
            share = f"{tally.bad} of {tally.others} labels that are not 0 are like that"
            guess = looks_like(largest if tally.largest else 0, self.limit)
            raise InputError(f"{self.root / tally.first}: {share}; it looks like {guess}")


def looks_like(largest: float, limit: float) -> str:
    """A guess at a scale from its largest value."""
    if largest == 0:
        return "text or dates, no numbers"
    for top, guess in ((5, "FACS intensities, 0 to 5"), (10, "a scale of 0 to 10"), (100, "percent, 0 to 100")):
        if limit < largest <= top * 1.1:
            return guess
    if largest <= limit:
        return "a scale with negative numbers"
    times = 10
    while largest > limit * times:
        times *= 10
    return f"numbers times {times:g}, as a spreadsheet with another decimal sign leaves them"
