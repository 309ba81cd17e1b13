"""Events and items as tables: CSV, TSV, JSONL or parquet, with columns of any name."""

from pathlib import Path

import polars as pl

from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import SUFFIXES, read_table, require_file
from llmrec.data.interactions import Interactions, select_columns
from llmrec.data.readers.parts import join_parts, part_files, source_of


def files(config: DataConfig) -> list[Path]:
    """The file of events (the three of a published split) and, if `config.items` names one, the file of items."""
    events = _events(config)
    return [*events, require_file(config.items, "--data.items")] if config.items else events


def _events(config: DataConfig) -> list[Path]:
    return part_files(config.source, SUFFIXES) if config.split == "given" else [require_file(config.source)]


def read(config: DataConfig) -> tuple[Catalog, Interactions]:
    """Read both tables; without a table of items, the catalogue has the item ids of the events, with empty titles."""
    paths = _events(config)
    source = source_of(paths)
    frames = [select_columns(read_table(path), config.event_columns, str(path)) for path in paths]
    frame = join_parts(frames, source) if config.split == "given" else frames[0]
    log = Interactions.from_frame(frame, source, config.seed)
    if config.items:
        items = require_file(config.items, "--data.items")
        return Catalog.from_file(items, config.columns.item, config.columns.title), log
    return without_text(log, source), log


def without_text(log: Interactions, source: str) -> Catalog:
    """A catalogue of the items in the log, with empty titles."""
    return Catalog.from_frame(log.frame.select(pl.col("item_id").unique(maintain_order=True)), source)
