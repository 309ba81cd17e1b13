"""What a person sees on stderr: progress bars on a terminal, log lines everywhere."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `items` with a progress bar on stderr; no bar when stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description, total=total, console=Console(stderr=True), transient=True)


def get_logger(name: str) -> logging.Logger:
    """A logger below `llmrec`; the command line sends them all to stderr."""
    return logging.getLogger(name if name.startswith("llmrec") else f"llmrec.{name}")


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send llmrec's log lines to stderr, once, as `12:00:00 message`."""
    logger = logging.getLogger("llmrec")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(level)
