"""MiniOneRec folders (https://arxiv.org/abs/2510.24431): the windows of each user are joined to one sequence.

Each row of train, valid or test is a window: the last (at most ten) items of a user's history, and the next item. The
rows may have any order; train comes first, then valid, then test. Parts may be missing, except with --data.split given.
"""

from pathlib import Path

import polars as pl

from llmrec.data.bad_rows import BadRows, TextOptions
from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import read_separated, require_column, require_folder
from llmrec.data.ids import is_id
from llmrec.data.interactions import Interactions
from llmrec.data.lines import read_lines
from llmrec.data.readers.lc_rec import read_items
from llmrec.data.readers.windows import join_windows
from llmrec.data.sequences import PARTS
from llmrec.data.text import clean_text, parse_literal
from llmrec.errors import UserError


def files(config: DataConfig) -> list[Path]:
    """The files of the existing parts, in time order, then the file of items (index/*.item.json or info/*.txt)."""
    folder = require_folder(config.source)
    parts = [file for part in PARTS if (file := _single(folder, f"{part}/*.csv")) is not None]
    missing = [part for part in PARTS if part not in {file.parent.name for file in parts}]
    if missing and config.split == "given":
        raise UserError(f"--data.split given: {folder}: no {missing[0]}/*.csv; expected one file for each part")
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
    windows = pl.concat(
        _windows(path, config.text_options).with_columns(part=pl.lit(_part(path), pl.UInt8)) for path in parts
    )
    events = join_windows(windows, config.source)
    if config.split != "given":
        events = events.drop("part")
    catalog = read_items(items) if items.suffix == ".json" else _info(items, config.text_options)
    return catalog, Interactions.from_frame(events, config.source)


def _part(path: Path) -> int:
    return PARTS.index(path.parent.name)


def _windows(path: Path, options: TextOptions) -> pl.DataFrame:
    """One row per window: `user_id`, `history` (list), `item_id`, all as text."""
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
        if not (user and item and isinstance(past, list) and all(is_id(old) for old in past)):
            raise UserError(
                f"{path}, row {number}: user_id {user!r}, item_id {item!r}, history_item_id {history!r:.80}; "
                "expected two ids and a list of ids"
            )
        windows.append((user, [str(old) for old in past], item))
    return pl.DataFrame(
        windows, schema={"user_id": pl.String, "history": pl.List(pl.String), "item_id": pl.String}, orient="row"
    )


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
