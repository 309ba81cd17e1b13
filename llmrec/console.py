"""Output to the terminal: log lines, progress bars, untrusted text made safe to print, and tables of text cells."""

import atexit
import itertools
import logging
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")
_SPACES = "\t\n\v\f\r\x85\u2028\u2029"
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def track(items: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
    """Yield from `items` with a progress bar on stderr; no bar when stderr is not a terminal.

    A range counts in its own numbers: `range(0, 1000, 64)` goes to 1,000, not to 16.

    Args:
        items: what to yield.
        description: what is going on.
        total: number of items, if they have no length.
        unit: what is counted, in the plural: `users`.
    """
    sizes: Iterable[int] = itertools.repeat(1)
    if isinstance(items, range):
        total, step, stop = items.stop - items.start, items.step, items.stop
        sizes = (min(step, stop - start) for start in items)
    elif total is None and isinstance(items, Sized):
        total = len(items)
    with closing(progress_bar(description, total, unit=unit)) as bar:
        for item, size in zip(items, sizes, strict=False):
            yield item
            bar.advance(size)


class _Bar:
    """A progress bar that the caller advances; it does nothing if stderr is not a terminal."""

    _screen: "Progress | None" = None
    """What shows all bars that are open, one below the other; None if none is open."""
    _lock = threading.Lock()

    def __init__(self, description: str, total: int | None, done: int, unit: str) -> None:
        self._shown: tuple[Progress, TaskID] | None = None
        if not sys.stderr.isatty():
            return
        with _Bar._lock:
            if _Bar._screen is None:
                _Bar._screen = _screen()
                _Bar._screen.start()
                atexit.register(_Bar._screen.stop)  # shows the cursor again if the program ends before the loop
            task = _Bar._screen.add_task(printable(description), total=total, completed=done, unit=unit)
            self._shown = (_Bar._screen, task)

    def advance(self, count: int = 1) -> None:
        if self._shown is not None:
            screen, task = self._shown
            screen.advance(task, count)

    def close(self) -> None:
        if self._shown is None:
            return
        (screen, task), self._shown = self._shown, None
        with _Bar._lock:
            screen.remove_task(task)
            if not screen.tasks:
                screen.stop()
                atexit.unregister(screen.stop)
                _Bar._screen = None


def _screen() -> "Progress":
    """Shows bars on stderr: description, bar, done of total, rate, time that is left."""
    from rich import progress
    from rich.console import Console
    from rich.text import Text

    class Rate(progress.ProgressColumn):
        def render(self, task: progress.Task) -> Text:
            return Text(rate(task.finished_speed or task.speed, task.fields["unit"]))

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=30),
        progress.MofNCompleteColumn(),
        Rate(),
        progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # stdout has the answer
    )


def rate(speed: float | None, unit: str) -> str:
    """A speed per second as `1,234 users/s`, `12.3 users/s` or `6.0 users/min`; empty if it is unknown."""
    if not speed:
        return ""
    number, per = (speed, "s") if speed >= 0.5 else (60 * speed, "min")
    return f"{number:,.{0 if number >= 100 else 1}f}{f' {unit}' if unit else ''}/{per}"


def progress_bar(description: str, total: int | None, done: int = 0, unit: str = "") -> _Bar:
    """A progress bar on stderr for a loop in another library. Call `advance()` per step and `close()` at the end.

    Args:
        description: what is going on.
        total: number of steps; None if it is unknown.
        done: how many are done already.
        unit: what is counted, in the plural.
    """
    return _Bar(description, total, done, unit)


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


class _StderrHandler(logging.Handler):
    """Writes to the stderr of the moment, which puts lines above the progress bars while some are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


class _PrintableFormatter(logging.Formatter):
    """Makes log lines printable, as they can contain untrusted names of files and items."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send llmrec's log lines to stderr as `12:00:00 message`. A second call only sets the level."""
    logger = logging.getLogger("llmrec")
    if not logger.handlers:
        handler = _StderrHandler()
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
