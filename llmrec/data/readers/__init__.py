"""Readers of the data formats; each module has the functions `files(config)` and `read(config)`."""

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
    """Read the catalogue and the whole log, before any filter; each user's events are in time order.

    Raises:
        UserError: for a missing or malformed file, with its name and, where known, the line.
    """
    if config.format == "synthetic":
        from llmrec.data.synthetic import synthetic

        return synthetic(config.synthetic_items, config.synthetic_users, config.seed)
    return READERS[config.format].read(config)


def input_files(config: DataConfig) -> list[Path]:
    """The files that `read` reads; an empty list for the synthetic shop and for datasets on the Hugging Face Hub.

    Raises:
        UserError: for a file that is missing.
    """
    if config.format == "synthetic":
        return []
    return READERS[config.format].files(config)
