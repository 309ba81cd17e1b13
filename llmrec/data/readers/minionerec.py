"""MiniOneRec folders (https://arxiv.org/abs/2510.24431): the windows of each user are joined to one sequence.

Each row of train, valid or test is a window: the last (at most ten) items of a user's history, and the next item. A
user's rows are in time order; train comes first, then valid, then test. Parts may be missing.
"""

from pathlib import Path

import polars as pl

from llmrec.console import get_logger
from llmrec.data.bad_rows import BadRows, TextOptions
from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import read_separated, require_column, require_folder
from llmrec.data.interactions import Interactions
from llmrec.data.lines import read_lines
from llmrec.data.readers.lc_rec import read_items
from llmrec.data.text import clean_text, parse_literal
from llmrec.errors import UserError

log = get_logger(__name__)

_PARTS = ("train", "valid", "test")


def files(config: DataConfig) -> list[Path]:
    """The files of the existing parts, in time order, then the file of items (index/*.item.json or info/*.txt)."""
    folder = require_folder(config.source)
    parts = [file for part in _PARTS if (file := _single(folder, f"{part}/*.csv")) is not None]
    if not parts:
        raise UserError(f"--data.path: {folder}: no train/*.csv, valid/*.csv or test/*.csv; expected at least one")
    items = _single(folder, "index/*.item.json") or _single(folder, "info/*.txt")
    if items is None:
        raise UserError(f"--data.path: {folder}: no index/*.item.json and no info/*.txt; expected one with the items")
    return [*parts, items]


def _single(folder: Path, pattern: str) -> Path | None:
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise UserError(f"--data.path: {folder / pattern}: found {len(found)} files; expected one, keep one data set")
    return found[0] if found else None


def read(config: DataConfig) -> tuple[Catalog, Interactions]:
    """Read the items, and each user's whole sequence, joined over all parts."""
    *parts, items = files(config)
    sequences: dict[str, list[str]] = {}
    gaps = 0
    for path in parts:
        for user, window in _windows(path, config.text_options):
            gaps += not _extend(sequences.setdefault(user, []), window)
    if gaps:
        log.info("%s: %d windows do not meet the one before; events between are missing", config.source, gaps)
    frame = pl.DataFrame(
        {"user_id": list(sequences), "item_id": list(sequences.values())},
        schema={"user_id": pl.String, "item_id": pl.List(pl.String)},
    ).explode("item_id")
    catalog = read_items(items) if items.suffix == ".json" else _info(items, config.text_options)
    return catalog, Interactions.from_frame(frame, config.source)


def _windows(path: Path, options: TextOptions) -> list[tuple[str, list[str]]]:
    """One (user, items) pair per row; the items are the history and the target."""
    frame = read_separated(path, ",", options)
    names = ["user_id", "history_item_id", "item_id"]
    for name in names:
        require_column(frame, name, path, "as MiniOneRec writes it")
    windows = []
    for number, (user, history, item) in enumerate(frame.select(names).iter_rows(), 1):
        try:
            past = parse_literal(history or "")
        except ValueError as error:
            raise UserError(
                f"{path}, row {number}: history_item_id {history!r:.80}: {error}; expected [1, 2]"
            ) from None
        if not (user and item and isinstance(past, list) and all(type(old) in (int, str) for old in past)):
            raise UserError(
                f"{path}, row {number}: user_id {user!r}, item_id {item!r}, history_item_id {history!r:.80}; "
                "expected two ids and a list of ids"
            )
        windows.append((user, [*map(str, past), item]))
    return windows


def _extend(sequence: list[str], window: list[str]) -> bool:
    """Append the items of `window` after its longest overlap with the end of `sequence`.

    Example: [1, 2, 3] and the window [2, 3, 4] give [1, 2, 3, 4].

    Returns:
        False if there is no overlap and `sequence` was not empty: then the whole window is appended.
    """
    for overlap in range(min(len(sequence), len(window)), 0, -1):
        if sequence[-overlap:] == window[:overlap]:
            sequence += window[overlap:]
            return True
    first = not sequence
    sequence += window
    return first


def _info(path: Path, options: TextOptions) -> Catalog:
    """Read the items of an info file; each line has semantic ID, title and item id, separated by tabs."""
    rows = []
    bad = BadRows(path, options)
    for number, line in read_lines(path, options, bad):
        values = line.split("\t")
        if len(values) < 3:
            bad.add(f"line {number}", f"{len(values)} fields; expected semantic ID, title, item id")
        else:
            rows.append({"item_id": values[-1].strip(), "title": clean_text(" ".join(values[1:-1]))})
    bad.report()
    return Catalog.from_frame(pl.DataFrame(rows, schema={"item_id": pl.String, "title": pl.String}), str(path))
