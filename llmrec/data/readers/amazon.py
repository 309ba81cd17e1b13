"""Amazon reviews and metadata of 2014, 2018 and 2023 as published: one record per line, plain or gzipped.

2014 and 2018: https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/; 2023: https://amazon-reviews-2023.github.io.
"""

import os
from pathlib import Path
from typing import Any

import polars as pl

from llmrec.console import get_logger, track
from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import read_records, require_file
from llmrec.data.interactions import Interactions
from llmrec.data.text import clean_record, clean_text
from llmrec.errors import UserError

log = get_logger(__name__)

_SUFFIXES = (".json", ".json.gz", ".jsonl", ".jsonl.gz")
# Name in llmrec -> name in the releases of 2014 and 2018, and in the release of 2023.
_REVIEW_2018 = {
    "user_id": "reviewerID",
    "item_id": "asin",
    "timestamp": "unixReviewTime",
    "rating": "overall",
    "review": "reviewText",
}
_REVIEW_2023 = {
    "user_id": "user_id",
    "item_id": "parent_asin",
    "timestamp": "timestamp",
    "rating": "rating",
    "review": "text",
}
_ITEM_FIELDS = {
    "title": ("title",),
    "brand": ("brand", "store"),
    "categories": ("categories", "category"),
    "description": ("description",),
    "features": ("features", "feature"),
    "price": ("price",),
}


def files(config: DataConfig) -> list[Path]:
    """The files of reviews and metadata; `config.path` is the file of reviews or the folder of both."""
    path = Path(config.source)
    if os.path.isdir(path):
        reviews = _only(
            [file for file in _records_in(path) if not file.name.startswith("meta_")],
            path,
            "reviews",
            "--data.path",
        )
    else:
        reviews = require_file(path)
    if config.items:
        return [reviews, require_file(config.items, "--data.items")]
    beside = [file for file in _records_in(reviews.parent) if file.name.startswith("meta_")]
    name = reviews.name.split(".")[0].removeprefix("reviews_").removesuffix("_5")
    exact = [file for file in beside if file.name.split(".")[0] == f"meta_{name}"]
    return [reviews, _only(exact or beside, reviews.parent, "metadata (meta_*)", "--data.items")]


def _records_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name.endswith(_SUFFIXES) and file.is_file())


def _only(found: list[Path], folder: Path, what: str, flag: str) -> Path:
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{folder}: expected one file of {what}, found {names}; name it with {flag}")
    return found[0]


def read(config: DataConfig) -> tuple[Catalog, Interactions]:
    """Read the reviews as events (with rating and review text) and the metadata as items."""
    reviews, metadata = files(config)
    return _items(metadata), Interactions.from_frame(_events(reviews), str(reviews), config.seed)


def _events(path: Path) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {name: [] for name in _REVIEW_2018}
    for number, record in track(read_records(path), f"reading {path.name}"):
        names = _REVIEW_2023 if "parent_asin" in record else _REVIEW_2018
        user, item, time = (record.get(names[name]) for name in ("user_id", "item_id", "timestamp"))
        rating = record.get(names["rating"])
        if not (isinstance(user, str) and user and isinstance(item, str) and item):
            expected = f"{names['user_id']} and {names['item_id']}"
            raise UserError(f"{path}, line {number}: expected texts {expected}, found {user!r} and {item!r}")
        if type(time) is not int or abs(time) >= 2**62:
            raise UserError(f"{path}, line {number}: {names['timestamp']} is {time!r}; expected a whole number")
        if rating is not None and not (type(rating) in (int, float) and abs(rating) < 1e9):
            raise UserError(f"{path}, line {number}: {names['rating']} is {rating!r}; expected a number")
        values = (user, item, time, rating, clean_text(record.get(names["review"])))
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    types = {"timestamp": pl.Int64, "rating": pl.Float64}
    return pl.DataFrame([pl.Series(n, v, types.get(n, pl.String), strict=False) for n, v in columns.items()])


def _items(path: Path) -> Catalog:
    rows: dict[str, dict[str, str]] = {}
    repeated = 0
    for number, record in track(read_records(path, python_literals=True), f"reading {path.name}"):
        item = record.get("parent_asin", record.get("asin"))
        if not isinstance(item, str) or not item:
            raise UserError(f"{path}, line {number}: expected a text parent_asin or asin, found {item!r}")
        if item in rows:  # the published files contain some items more than once
            repeated += 1
        else:
            rows[item] = {"item_id": item, **_item_fields(record)}
    if repeated:
        log.info("%s: %d repeated items, first record of each kept", path, repeated)
    names = ["item_id", *_ITEM_FIELDS]
    frame = pl.DataFrame(list(rows.values()), schema=dict.fromkeys(names, pl.String))
    return Catalog.from_frame(frame, str(path))


def _item_fields(record: dict[str, Any]) -> dict[str, str]:
    found = {
        ours: next((record[name] for name in names if record.get(name)), "") for ours, names in _ITEM_FIELDS.items()
    }
    fields = clean_record(found)
    if "getTime()" in fields["title"]:  # a script of the web page, not a title; the authors of 2018 warn of it
        fields["title"] = ""
    return fields
