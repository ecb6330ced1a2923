"""Is the scale of a source's intensities the one that its form promises? Counted while they are read.

A table in percent, or one from which a spreadsheet took the decimal sign, would lose every label but its zeros. So an
import stops where most of the labels that are not 0 are no intensities: of one AU in one file or in all files, from
three rows on, or of everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

ROWS = 3
"""So many unusable labels of one AU stop an import; fewer are damage of single rows."""


@dataclass
class Tally:
    """Labels of one AU that are not 0, and those among them that are no intensities."""

    others: int = 0
    bad: int = 0
    largest: float = 0.0  # absolute value of the bad ones
    first: str = ""  # where the first of them is, and what it says

    def add(self, other: Tally) -> None:
        self.others += other.others
        self.bad += other.bad
        self.largest = max(self.largest, other.largest)
        self.first = self.first or other.first


@dataclass
class Scale:
    """Tallies by AU, of the file that is being read and of all before it."""

    root: Path = Path()
    file: str = ""
    limit: float = 5.0  # the largest value that the form allows
    fractions: int = 0  # good values between 0 and 1
    largest: float = 0.0  # of the good values
    here: dict[str, Tally] = field(default_factory=dict)
    before: dict[str, Tally] = field(default_factory=dict)

    def saw(self, file: str, line: int, name: str, cell: str, value: float, limit: float, good: bool) -> None:
        """A label that was read; ``value`` is its number (NaN: none), ``limit`` the largest that the form allows."""
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
        """Look at each AU of the file; ``ValueError`` in one line where its scale is another."""
        largest = max((tally.largest for tally in self.here.values()), default=0.0)
        for name, tally in self.here.items():
            self.stop_where_most_are_bad(tally, ROWS, largest)
            self.before.setdefault(name, Tally()).add(tally)
        self.here = {}

    def end(self) -> None:
        """Look at each AU of all files, and at all together."""
        self.end_of_file()
        everything = Tally()
        for tally in self.before.values():
            everything.add(tally)
        for tally in self.before.values():
            self.stop_where_most_are_bad(tally, ROWS, everything.largest)
        self.stop_where_most_are_bad(everything, 2, everything.largest)

    def looks_small(self) -> bool:
        """Is there no intensity above 1, though many lie below? So write those who count from 0 to 1."""
        return self.fractions >= 10 and self.largest <= 1

    def stop_where_most_are_bad(self, tally: Tally, at_least: int, largest: float) -> None:
        if tally.bad >= at_least and 2 * tally.bad > tally.others:
            share = f"{tally.bad} of {tally.others} labels that are not 0 are like that"
            guess = looks_like(largest if tally.largest else 0, self.limit)
            raise ValueError(f"{self.root / tally.first}: {share}; it looks like {guess}")


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
