"""LC-Rec folders (https://arxiv.org/abs/2311.09049): each user's items in time order, and the texts of the items."""

import os
from pathlib import Path
from typing import Any

import polars as pl

from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import read_json, require_file
from llmrec.data.ids import is_id
from llmrec.data.interactions import Interactions
from llmrec.data.readers.table import without_text
from llmrec.data.text import clean_record
from llmrec.errors import UserError


def files(config: DataConfig) -> list[Path]:
    """The file D.inter.json and, if it exists, D.item.json; `config.path` is the folder or D.inter.json."""
    path = Path(config.source)
    if os.path.isdir(path):
        found = sorted(path.glob("*.inter.json"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise UserError(f"--data.path: {path}: expected one *.inter.json, found {names}; name the file")
        path = found[0]
    inter = require_file(path)
    items = inter.with_name(inter.name.removesuffix(".inter.json") + ".item.json")
    return [inter, items] if os.path.isfile(items) else [inter]


def read(config: DataConfig) -> tuple[Catalog, Interactions]:
    """Read the sequences and the items; without D.item.json, the items have only their ids and no text."""
    inter, *items = files(config)
    log = Interactions.from_frame(_events(inter), str(inter))
    return (read_items(items[0]) if items else without_text(log, str(inter))), log


def _events(path: Path) -> pl.DataFrame:
    document = _mapping(path, "user -> [item, ...]")
    users: list[str] = []
    items: list[str] = []
    for user, sequence in document.items():
        if not isinstance(sequence, list) or not all(is_id(item) for item in sequence):
            raise UserError(f"{path}: user {user!r}: expected a list of item ids, found {str(sequence)[:80]}")
        users += [user] * len(sequence)
        items += map(str, sequence)
    return pl.DataFrame({"user_id": users, "item_id": items}, schema={"user_id": pl.String, "item_id": pl.String})


def read_items(path: Path) -> Catalog:
    """Read the catalogue from a D.item.json file: item -> {title, description, brand, categories, ...}."""
    rows = []
    for item, record in _mapping(path, "item -> {title, ...}").items():
        if not isinstance(record, dict):
            raise UserError(f"{path}: item {item!r}: expected {{title, ...}}, found {str(record)[:80]}")
        rows.append({**clean_record(record), "item_id": item})
    return Catalog.from_frame(pl.DataFrame(rows, infer_schema_length=None), str(path))


def _mapping(path: Path, expected: str) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected an object {expected}, found {type(document).__name__}")
    return document
