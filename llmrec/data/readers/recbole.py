"""RecBole atomic files, D.inter and D.item (https://recbole.io/docs/user_guide/data/atomic_files.html)."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl

from llmrec.console import get_logger
from llmrec.data.bad_rows import BadRows, Built, TextOptions, build
from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import require_file
from llmrec.data.interactions import Interactions, select_columns
from llmrec.data.readers.table import without_text
from llmrec.data.separated import SeparatedFile
from llmrec.errors import UserError

log = get_logger(__name__)

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
    table = _Atomic(inter, config.text_options)
    events = table.build(
        lambda rows: Interactions.from_frame(
            select_columns(rows, config.event_columns, str(inter)), str(inter), config.seed
        )
    )
    if not items:
        return without_text(events, str(inter)), events
    return _items(_Atomic(items[0], config.text_options), config), events


def _items(table: "_Atomic", config: DataConfig) -> Catalog:
    title, source = config.columns.title, str(table.path)
    names = table.frame.columns
    if title == "title" and title not in names:
        others = [name for name in names if name.endswith(("title", "name"))]
        if len(others) == 1:
            [title] = others
            log.info("%s: the titles are in column %r (--data.columns.title)", source, title)
    return table.build(lambda rows: Catalog.from_table(rows, source, config.columns.item, title))


class _Atomic:
    """An atomic file; all columns are text. A column with the header `name:type` has the name `name`."""

    def __init__(self, path: Path, options: TextOptions) -> None:
        """Read the file and check the types in its header."""
        self.path, self.options = path, options
        self._file = SeparatedFile(path, "\t", replace(options, quoting="none"))
        frame = self._file.frame()
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
        self.frame = frame.rename(dict(zip(frame.columns, bare, strict=True)))

    def build(self, make: Callable[[pl.DataFrame], Built]) -> Built:
        """`make` of the table, with the policy for bad rows."""
        return build(
            make,
            self.frame,
            BadRows(self.path, self.options),
            lambda rows: [f"line {line}" for line in self._file.lines(rows)],
        )
