"""Events and items as tables: CSV, TSV, JSONL or parquet, with columns of any name."""

from pathlib import Path

import polars as pl

from llmrec.data.bad_rows import BadRows, build
from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import SUFFIXES, read_table, require_file, row_places
from llmrec.data.interactions import Interactions, select_columns, used_names
from llmrec.data.readers.parts import join_parts, part_files, places_of, source_of


def files(config: DataConfig) -> list[Path]:
    """The file of events (the three of a published split) and, if `config.items` names one, the file of items."""
    events = _events(config)
    return [*events, require_file(config.items, "--data.items")] if config.items else events


def _events(config: DataConfig) -> list[Path]:
    return part_files(config.source, SUFFIXES) if config.split == "given" else [require_file(config.source)]


def read(config: DataConfig) -> tuple[Catalog, Interactions]:
    """Read both tables; without a table of items, the catalogue has the item ids of the events, with empty titles."""
    paths, options = _events(config), config.text_options
    source, columns = source_of(paths), config.event_columns
    frames = [
        select_columns(read_table(path, options=options, used=used_names(columns)), columns, str(path))
        for path in paths
    ]
    log = build(
        lambda rows: Interactions.from_frame(rows, source, config.seed),
        join_parts(frames, source) if config.split == "given" else frames[0],
        BadRows(source, options),
        places_of(paths, frames, lambda path, rows: row_places(path, rows, options)),
    )
    if not config.items:
        return without_text(log, source), log
    return read_items(require_file(config.items, "--data.items"), config), log


def read_items(path: Path, config: DataConfig) -> Catalog:
    """Read the table of items."""
    options = config.text_options
    return build(
        lambda rows: Catalog.from_table(rows, str(path), *config.item_columns),
        read_table(path, "--data.items", options),
        BadRows(path, options),
        lambda rows: row_places(path, rows, options),
    )


def without_text(log: Interactions, source: str) -> Catalog:
    """A catalogue of the items in the log, with empty titles."""
    return Catalog.from_frame(log.frame.select(pl.col("item_id").unique(maintain_order=True)), source)
