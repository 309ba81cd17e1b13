"""Rows of the user's files that cannot be read: stop at the first one, or leave them out and count them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import polars as pl

from llmrec.console import get_logger
from llmrec.errors import UserError

log = get_logger(__name__)

Quoting = Literal["auto", "none", "standard"]
BadRowsPolicy = Literal["fail", "drop"]
Built = TypeVar("Built")
SHOWN = 3
"""Bad rows that the log message shows."""


@dataclass(frozen=True)
class TextOptions:
    """How text files are read: `data.encoding`, `data.quoting` and `data.bad_rows`."""

    encoding: str = "auto"
    quoting: Quoting = "auto"
    bad_rows: BadRowsPolicy = "fail"
    settable: bool = False
    """whether the user can set these options, so that messages may name them"""


class BadRows:
    """The bad rows of one file: the first one raises a UserError, or they are counted and left out."""

    def __init__(self, path: Path | str, options: TextOptions) -> None:
        self.path, self.options = path, options
        self.count = 0
        self._shown: list[str] = []

    def add(self, place: str, reason: str, fix: str = "correct it") -> None:
        """Leave out the row at `place` (such as "line 7"), or raise a UserError, as the options say."""
        if self.options.bad_rows == "fail":
            hint = f"; {fix}, or use --data.bad_rows drop" if self.options.settable else ""
            raise UserError(f"{self.path}, {place}: {reason}{hint}")
        self.count += 1
        if len(self._shown) < SHOWN:
            self._shown.append(f"{place}: {reason}")

    def report(self) -> None:
        """Log how many rows were left out, and the first three of them."""
        if self.count:
            rows = "1 bad row" if self.count == 1 else f"{self.count:,} bad rows"
            log.warning("%s: %s left out (--data.bad_rows drop): %s", self.path, rows, "; ".join(self._shown))


class RowsError(UserError):
    """Some rows of a table are wrong; the message names the first.

    Attributes:
        rows: their row numbers, from 0, in ascending order.
        reason: row number -> what is wrong with it, such as "timestamp 'noon'; expected a number".
    """

    def __init__(self, source: str, rows: Sequence[int], reason: Callable[[int], str], message: str = "") -> None:
        """`message` replaces "`source`: row 7 has `reason`"."""
        super().__init__(message or f"{source}: row {rows[0] + 1} has {reason(rows[0])}")
        self.rows, self.reason = rows, reason


def build(
    make: Callable[[pl.DataFrame], Built], frame: pl.DataFrame, bad: BadRows, places: Callable[[list[int]], list[str]]
) -> Built:
    """`make(frame)`, without the rows for which it raises a RowsError if they may be left out.

    Args:
        make: builds a catalogue or a log from a frame.
        frame: the table as read.
        bad: takes the bad rows and reports them.
        places: numbers of rows of the table, from 0 -> where they stand in the file, such as "line 7".

    Raises:
        UserError: for a bad row if the options say so; it names the line.
    """
    rows = np.arange(len(frame))
    while True:
        try:
            built = make(frame)
        except RowsError as error:
            shown = list(error.rows[:SHOWN])
            found = places([int(rows[row]) for row in shown])
            for place, row in zip(found, shown, strict=True):
                bad.add(place, error.reason(row))
            bad.count += len(error.rows) - len(shown)
            kept = np.delete(np.arange(len(frame)), error.rows)
            rows, frame = rows[kept], frame[kept]
        else:
            bad.report()
            return built
