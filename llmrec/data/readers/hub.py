"""Hugging Face datasets, from the Hub or a local folder: NAME[:CONFIG][@SPLIT]."""

import os
from pathlib import Path
from typing import Any

import polars as pl

from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.interactions import Interactions, select_columns
from llmrec.data.readers.parts import WORDS, join_parts
from llmrec.data.readers.table import read_items, without_text
from llmrec.errors import UserError


def files(config: DataConfig) -> list[Path]:
    """The local files; a dataset on the Hub has none."""
    found: list[Path] = []
    for name in (config.source, config.items):
        path = Path(_parse(name)[0]) if name else None
        if path and os.path.isdir(path):
            found += sorted(file for file in path.rglob("*") if file.is_file())
        elif path and os.path.isfile(path):
            found.append(path)
    return found


def read(config: DataConfig) -> tuple[Catalog, Interactions]:
    """Read the events from the configured columns, and the items from another dataset or a file.

    Without `config.items`, the catalogue has the item ids of the events, with empty titles.
    """
    if config.split == "given":
        frames = [select_columns(part, config.event_columns, config.source) for part in _load_parts(config.source)]
        events = join_parts(frames, config.source)
    else:
        events = select_columns(_load(config.source, "--data.path"), config.event_columns, config.source)
    log = Interactions.from_frame(events, config.source, config.seed)
    if config.items is None:
        return without_text(log, config.source), log
    if os.path.isfile(Path(config.items)):
        return read_items(Path(config.items), config), log
    frame = _load(config.items, "--data.items")
    return Catalog.from_table(frame, config.items, *config.item_columns), log


def _parse(name: str) -> tuple[str, str | None, str | None]:
    """Split NAME[:CONFIG][@SPLIT] into name or folder, configuration and split."""
    if os.path.exists(Path(name)):
        return name, None, None
    name, _, split = name.partition("@")
    if os.path.exists(Path(name)):
        return name, None, split or None
    name, _, config = name.partition(":")
    return name, config or None, split or None


def _load(source: str, flag: str) -> pl.DataFrame:
    loaded, split = _open(source, flag)
    if isinstance(loaded, dict):
        names = list(loaded)
        if split is None and len(names) == 1:
            split = names[0]
        if split not in names:
            found = "no split" if split is None else f"split {split!r}"
            name = _parse(source)[0]
            raise UserError(f"{flag}: {source}: {found} named; write {name}@SPLIT with one of {', '.join(names)}")
        loaded = loaded[split]
    elif split is not None:
        raise UserError(f"{flag}: {source}: this dataset has no splits; leave out @{split}")
    return _as_frame(loaded)


def _load_parts(source: str) -> list[pl.DataFrame]:
    """The train, validation and test part of a dataset with these splits."""
    loaded, split = _open(source, "--data.path")
    names = list(loaded) if isinstance(loaded, dict) else []
    found = [next((name for name in words if name in names), None) for words in WORDS.values()]
    if split is not None or None in found:
        raise UserError(
            f"--data.split given: {source}: expected a dataset with the splits train, valid (or val, validation, dev) "
            f"and test, without @SPLIT; found {', '.join(names) or 'no splits'}"
        )
    return [_as_frame(loaded[name]) for name in found]


def _open(source: str, flag: str) -> tuple[Any, str | None]:
    """The loaded dataset, a dict if it has splits, and the split that `source` names."""
    import datasets

    name, config, split = _parse(source)
    try:
        if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(name), split
        return datasets.load_dataset(name, config), split
    except Exception as error:  # datasets has no common error class; the likely cause is the user's path
        raise UserError(f"{flag}: {source}: cannot be loaded as a dataset: {error}") from None


def _as_frame(dataset: Any) -> pl.DataFrame:
    frame = dataset.to_polars()
    assert isinstance(frame, pl.DataFrame)
    return frame
