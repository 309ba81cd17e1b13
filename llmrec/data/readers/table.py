"""Events and items as tables: CSV, TSV, JSONL or parquet, with columns of any name."""

from pathlib import Path

import polars as pl

from llmrec.data.bad_rows import BadRows, build
from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import read_table, require_file, row_places
from llmrec.data.interactions import Interactions, select_columns


def files(config: DataConfig) -> list[Path]:
    """The file of events and, if `config.items` names one, the file of items."""
    events = require_file(config.source)
    return [events, require_file(config.items, "--data.items")] if config.items else [events]


def read(config: DataConfig) -> tuple[Catalog, Interactions]:
    """Read both tables; without a table of items, the catalogue has the item ids of the events, with empty titles."""
    events, *items = files(config)
    options = config.text_options
    frame = select_columns(read_table(events, options=options), config.event_columns, str(events))
    log = build(
        lambda rows: Interactions.from_frame(rows, str(events), config.seed),
        frame,
        BadRows(events, options),
        lambda rows: row_places(events, rows, options),
    )
    return (read_items(items[0], config) if items else without_text(log, str(events))), log


def read_items(path: Path, config: DataConfig) -> Catalog:
    """Read the table of items."""
    options = config.text_options
    return build(
        lambda rows: Catalog.from_table(rows, str(path), config.columns.item, config.columns.title),
        read_table(path, "--data.items", options),
        BadRows(path, options),
        lambda rows: row_places(path, rows, options),
    )


def without_text(log: Interactions, source: str) -> Catalog:
    """A catalogue of the items in the log, with empty titles."""
    return Catalog.from_frame(log.frame.select(pl.col("item_id").unique(maintain_order=True)), source)
