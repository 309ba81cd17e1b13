"""Output to the terminal: log lines, progress bars, untrusted text made safe to print, and tables of text cells."""

import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
_SPACES = "\t\n\v\f\r\x85\u2028\u2029"
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `items` with a progress bar on stderr; no bar when stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description, total=total, console=Console(stderr=True), transient=True)


class _Bar:
    """A progress bar that the caller advances; it does nothing if stderr is not a terminal."""

    def __init__(self, description: str, total: int, done: int) -> None:
        self._progress = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task(description, total=total, completed=done)
            self._progress.start()

    def advance(self) -> None:
        if self._progress is not None:
            self._progress.advance(self._task)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def progress_bar(description: str, total: int, done: int = 0) -> _Bar:
    """A progress bar on stderr for a loop in another library. Call `advance()` per step and `close()` at the end."""
    return _Bar(description, total, done)


def printable(text: str) -> str:
    """Turn untrusted text into one line without terminal commands. No other function cleans printed text.

    Tabs and line ends become spaces. Other control characters, marks that change the direction of writing, and halves
    of surrogate pairs are shown as escapes. All other characters stay: letters of any script, emoji, combining marks.
    """
    return _UNSAFE.sub(lambda found: " " if found[0] in _SPACES else ascii(found[0])[1:-1], text)


def say(*lines: str) -> None:
    """Print lines to stdout, each made printable."""
    for line in lines:
        print(printable(line))


def get_logger(name: str) -> logging.Logger:
    """A logger below `llmrec`. The command line sends all of these loggers to stderr."""
    return logging.getLogger(name if name.startswith("llmrec") else f"llmrec.{name}")


class _PrintableFormatter(logging.Formatter):
    """Makes log lines printable, as they can contain untrusted names of files and items."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send llmrec's log lines to stderr as `12:00:00 message`. A second call only sets the level."""
    logger = logging.getLogger("llmrec")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_PrintableFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(level)


Rows = Sequence[Sequence[str]]
"""A header and the rows below it, all with the same number of cells: first a name, then numbers."""


def plain(rows: Rows) -> str:
    """The table as text in columns: names aligned left, numbers aligned right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join((name.ljust(widths[0]), *numbers)))
    return "\n".join(lines)


def markdown(rows: Rows) -> str:
    """The table in Markdown."""
    header, *others = rows
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *others))
