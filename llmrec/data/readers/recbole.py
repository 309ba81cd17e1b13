"""RecBole atomic files, D.inter and D.item (https://recbole.io/docs/user_guide/data/atomic_files.html)."""

import os
from pathlib import Path

import polars as pl

from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import read_separated, require_column, require_file
from llmrec.data.interactions import Interactions, select_columns
from llmrec.data.readers.parts import join_parts, part_files, source_of
from llmrec.data.readers.table import without_text
from llmrec.data.readers.windows import join_windows
from llmrec.errors import UserError

_TYPES = ("token", "token_seq", "float", "float_seq")


def files(config: DataConfig) -> list[Path]:
    """The file D.inter (the three of a published split) and, if it exists, D.item.

    `config.path` is the folder or D.inter; for a published split the folder or D.train.inter. The items of
    D.train.inter are in D.train.item or D.item.
    """
    events = _events(config)
    named = dict.fromkeys([events[0].stem, events[0].stem.rpartition(".")[0] or events[0].stem])
    items = [events[0].with_name(f"{name}.item") for name in named]
    return [*events, *[path for path in items if os.path.isfile(path)][:1]]


def _events(config: DataConfig) -> list[Path]:
    if config.split == "given":
        return part_files(config.source, [".inter"])
    path = Path(config.source)
    if os.path.isdir(path):
        found = sorted(path.glob("*.inter"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise UserError(
                f"--data.path: {path}: expected one *.inter file, found {names}; name the file, or use --data.split "
                "given for the three files of a published split"
            )
        path = found[0]
    return [require_file(path)]


def read(config: DataConfig) -> tuple[Catalog, Interactions]:
    """Read the events from the configured columns, and the items with all columns.

    If there is a column of histories (`item_id_list`, where `item_id` is the column of items), each row is a history
    and the next item; the rows of a user are joined to one sequence, and no times are read. Other sequence fields
    (token_seq, float_seq) stay one text with spaces between their values. Without D.item, the items have only their
    ids and no text.
    """
    paths = _events(config)
    source = source_of(paths)
    tables = [_read_atomic(path) for path in paths]
    history = f"{config.columns.item}_list"
    if any(history in table.columns for table in tables):
        frames = [_windows(table, config, str(path)) for table, path in zip(tables, paths, strict=True)]
        events = join_windows(join_parts(frames, source), source)
    else:
        frames = [
            select_columns(table, config.event_columns, str(path)) for table, path in zip(tables, paths, strict=True)
        ]
        events = join_parts(frames, source)
    if config.split != "given":
        events = events.drop("part")
    log = Interactions.from_frame(events, source, config.seed)
    items = files(config)[len(paths) :]
    if not items:
        return without_text(log, source), log
    return Catalog.from_table(_read_atomic(items[0]), str(items[0]), config.columns.item, config.columns.title), log


def _windows(table: pl.DataFrame, config: DataConfig, source: str) -> pl.DataFrame:
    names: dict[str, str | None] = {"user_id": config.columns.user, "item_id": config.columns.item}
    history = f"{config.columns.item}_list"
    require_column(table, history, source, "the histories, as in the other parts")
    windows = select_columns(table, names, source)
    return windows.with_columns(history=table[history].fill_null("").str.extract_all(r"\S+"))


def _read_atomic(path: Path) -> pl.DataFrame:
    """Read all columns as text; a column with the header `name:type` gets the name `name`, and the type is checked."""
    frame = read_separated(path, "\t", quoted=False)
    names = [header.rpartition(":") for header in frame.columns]
    for header, (name, _, kind) in zip(frame.columns, names, strict=True):
        if not name or kind not in _TYPES:
            raise UserError(
                f"{path}, line 1: found {header!r}; expected name:type with type {', '.join(_TYPES)}, "
                "tab between columns"
            )
    bare = [name for name, _, _ in names]
    if len(set(bare)) < len(bare):
        twice = next(name for name in bare if bare.count(name) > 1)
        raise UserError(f"{path}, line 1: column {twice!r} stands twice; rename or remove one")
    return frame.rename(dict(zip(frame.columns, bare, strict=True)))
