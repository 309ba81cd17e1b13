"""Readers of the formats that data comes in; each module has `files(config)` and `read(config)`."""

from pathlib import Path

from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.interactions import Interactions
from llmrec.data.readers import amazon, hub, lc_rec, minionerec, movielens, recbole, table

READERS = {
    "table": table,
    "lc-rec": lc_rec,
    "amazon": amazon,
    "movielens": movielens,
    "recbole": recbole,
    "minionerec": minionerec,
    "datasets": hub,
}


def read(config: DataConfig) -> tuple[Catalog, Interactions]:
    """The catalogue and the whole log, each user's events in time order, nothing filtered yet.

    Raises:
        UserError: for a missing or malformed file, with its name and, where known, the line.
    """
    if config.format == "synthetic":
        from llmrec.data.synthetic import synthetic

        return synthetic(config.synthetic_items, config.synthetic_users, config.seed)
    return READERS[config.format].read(config)


def input_files(config: DataConfig) -> list[Path]:
    """The files that `read` will read; none for the synthetic shop and for datasets on a hub.

    Raises:
        UserError: for a file that is missing.
    """
    if config.format == "synthetic":
        return []
    return READERS[config.format].files(config)
