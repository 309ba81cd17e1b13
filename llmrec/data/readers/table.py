"""Events and items as tables: CSV, TSV, JSONL or parquet, with columns of any name."""

from pathlib import Path

import polars as pl

from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import read_table, require_file
from llmrec.data.interactions import Interactions, select_columns


def files(config: DataConfig) -> list[Path]:
    """The file of events and, if `config.items` names one, the file of items."""
    events = require_file(config.source)
    return [events, require_file(config.items, "--data.items")] if config.items else [events]


def read(config: DataConfig) -> tuple[Catalog, Interactions]:
    """Read both tables; without a table of items, the catalogue has the item ids of the events, with empty titles."""
    events, *items = files(config)
    frame = select_columns(read_table(events), config.event_columns, str(events))
    log = Interactions.from_frame(frame, str(events), config.seed)
    if items:
        return Catalog.from_file(items[0], config.columns.item, config.columns.title), log
    return without_text(log, str(events)), log


def without_text(log: Interactions, source: str) -> Catalog:
    """A catalogue of the items in the log, with empty titles."""
    return Catalog.from_frame(log.frame.select(pl.col("item_id").unique(maintain_order=True)), source)
