"""RecBole atomic files, D.inter and D.item (https://recbole.io/docs/user_guide/data/atomic_files.html)."""

import os
from dataclasses import replace
from pathlib import Path

import polars as pl

from llmrec.console import get_logger
from llmrec.data.bad_rows import BadRows, TextOptions, build
from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import require_column, require_file
from llmrec.data.interactions import Interactions, select_columns
from llmrec.data.readers.parts import join_parts, part_files, places_of, source_of
from llmrec.data.readers.table import without_text
from llmrec.data.readers.windows import join_windows
from llmrec.data.separated import SeparatedFile
from llmrec.errors import UserError

log = get_logger(__name__)

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
    source, columns, options = source_of(paths), config.event_columns, config.text_options
    tables = [_Atomic(path, options) for path in paths]
    history = f"{config.columns.item}_list"
    windows = any(history in table.frame.columns for table in tables)
    frames = [
        _windows(table, config) if windows else select_columns(table.frame, columns, str(table.path))
        for table in tables
    ]

    def make(rows: pl.DataFrame) -> Interactions:
        events = join_windows(rows, source) if windows else rows
        if config.split != "given":
            events = events.drop("part")
        return Interactions.from_frame(events, source, config.seed)

    by_path = dict(zip(paths, tables, strict=True))
    log = build(
        make,
        join_parts(frames, source),
        BadRows(source, options),
        places_of(paths, frames, lambda path, rows: by_path[path].places(rows)),
    )
    items = files(config)[len(paths) :]
    return (_items(_Atomic(items[0], options), config) if items else without_text(log, source)), log


def _windows(table: "_Atomic", config: DataConfig) -> pl.DataFrame:
    names: dict[str, str | None] = {"user_id": config.columns.user, "item_id": config.columns.item}
    history, source = f"{config.columns.item}_list", str(table.path)
    require_column(table.frame, history, source, "the histories, as in the other parts")
    windows = select_columns(table.frame, names, source)
    return windows.with_columns(history=table.frame[history].fill_null("").str.extract_all(r"\S+"))


def _items(table: "_Atomic", config: DataConfig) -> Catalog:
    title, source = config.columns.title, str(table.path)
    names = table.frame.columns
    if title == "title" and title not in names:
        others = [name for name in names if name.endswith(("title", "name"))]
        if len(others) == 1:
            [title] = others
            log.info("%s: the titles are in column %r (--data.columns.title)", source, title)
    return build(
        lambda rows: Catalog.from_table(rows, source, config.item_columns[0], title, config.columns.image),
        table.frame,
        BadRows(table.path, config.text_options),
        table.places,
    )


class _Atomic:
    """An atomic file; all columns are text. A column with the header `name:type` has the name `name`."""

    def __init__(self, path: Path, options: TextOptions) -> None:
        """Read the file and check the types in its header."""
        self.path = path
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
            twice = next(name for name in bare if bare.count(name) > 1)
            raise UserError(f"{path}, line 1: column {twice!r} stands twice; rename or remove one of them")
        self.frame = frame.rename(dict(zip(frame.columns, bare, strict=True)))

    def places(self, rows: list[int]) -> list[str]:
        """Where rows of `frame`, numbered from 0, stand in the file, such as "line 7"."""
        return [f"line {line}" for line in self._file.lines(rows)]
