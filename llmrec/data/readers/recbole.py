"""RecBole atomic files, D.inter and D.item (https://recbole.io/docs/user_guide/data/atomic_files.html)."""

import os
from pathlib import Path

import polars as pl

from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import read_separated, require_file
from llmrec.data.interactions import Interactions, select_columns
from llmrec.data.readers.table import without_text
from llmrec.errors import UserError

_TYPES = ("token", "token_seq", "float", "float_seq")


def files(config: DataConfig) -> list[Path]:
    """The file D.inter and, if it exists, D.item; `config.path` is the folder or D.inter."""
    path = Path(config.source)
    if os.path.isdir(path):
        found = sorted(path.glob("*.inter"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise UserError(f"--data.path: {path}: expected one *.inter file, found {names}; name the file")
        path = found[0]
    inter = require_file(path)
    items = inter.with_suffix(".item")
    return [inter, items] if os.path.isfile(items) else [inter]


def read(config: DataConfig) -> tuple[Catalog, Interactions]:
    """Read the events from the configured columns, and the items with all columns.

    A sequence field (token_seq, float_seq) stays one text with spaces between its values. Without D.item, the items
    have only their ids and no text.
    """
    inter, *items = files(config)
    events = select_columns(_read_atomic(inter), config.event_columns, str(inter))
    log = Interactions.from_frame(events, str(inter), config.seed)
    if not items:
        return without_text(log, str(inter)), log
    frame = _read_atomic(items[0])
    return Catalog.from_table(frame, str(items[0]), config.columns.item, config.columns.title), log


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
        raise UserError(f"{path}, line 1: a column name stands twice in {', '.join(bare)}")
    return frame.rename(dict(zip(frame.columns, bare, strict=True)))
