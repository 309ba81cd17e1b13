"""Amazon reviews and metadata of 2014, 2018 and 2023 as published: one record per line, plain or gzipped.

2014 and 2018: https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/; 2023: https://amazon-reviews-2023.github.io.
"""

import os
from pathlib import Path
from typing import Any

import polars as pl

from llmrec.console import get_logger, track
from llmrec.data.bad_rows import BadRows, TextOptions, build
from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import read_records, read_separated, require_file
from llmrec.data.interactions import Interactions
from llmrec.data.readers.table import without_text
from llmrec.data.text import clean_record, clean_text
from llmrec.errors import UserError

log = get_logger(__name__)

_SUFFIXES = (".json", ".json.gz", ".jsonl", ".jsonl.gz")
_RATINGS = (".csv", ".csv.gz")
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
        found = [file for file in _files_in(path, _SUFFIXES) if not file.name.startswith("meta_")]
        reviews = _only(found or _files_in(path, _RATINGS), path, "reviews", "--data.path")
    else:
        reviews = require_file(path)
    if config.items:
        return [reviews, require_file(config.items, "--data.items")]
    beside = [file for file in _files_in(reviews.parent, _SUFFIXES) if file.name.startswith("meta_")]
    if not beside and _is_ratings(reviews):
        return [reviews]
    name = reviews.name.split(".")[0].removeprefix("reviews_").removeprefix("ratings_").removesuffix("_5")
    exact = [file for file in beside if file.name.split(".")[0] == f"meta_{name}"]
    return [reviews, _only(exact or beside, reviews.parent, "metadata (meta_*)", "--data.items")]


def _files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name.lower().endswith(suffixes) and file.is_file())


def _is_ratings(path: Path) -> bool:
    return path.name.lower().endswith(_RATINGS)


def _only(found: list[Path], folder: Path, what: str, flag: str) -> Path:
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{folder}: expected one file of {what}, found {names}; name it with {flag}")
    return found[0]


def read(config: DataConfig) -> tuple[Catalog, Interactions]:
    """Read the reviews as events (with rating and review text) and the metadata as items.

    A table of ratings (CSV) has no review texts. Without metadata beside it, the items have no text.
    """
    reviews, *metadata = files(config)
    options = config.text_options
    if _is_ratings(reviews):
        catalog = _items(metadata[0], options) if metadata else None
        log = _ratings(reviews, catalog, config)
        return catalog or without_text(log, str(reviews)), log
    log = Interactions.from_frame(_events(reviews, options), str(reviews), config.seed)
    return _items(metadata[0], options), log


def _ratings(path: Path, catalog: Catalog | None, config: DataConfig) -> Interactions:
    """Read a CSV of users, items, ratings and times; those of 2014 and 2018 have no header."""
    frame = read_separated(path, ",", config.text_options)
    names = {ours: theirs for ours, theirs in _REVIEW_2023.items() if theirs in frame.columns}
    if {"user_id", "item_id", "timestamp"} <= names.keys():
        frame = frame.select(pl.col(theirs).alias(ours) for ours, theirs in names.items())
    else:
        if frame.width != 4:
            raise UserError(f"{path}: {frame.width} columns; expected user, item, rating and time, without a header")
        first = pl.DataFrame([frame.columns], schema=frame.schema, orient="row")
        frame = pl.concat([first, frame])
        users, items = _users_and_items(frame, catalog, path)
        frame = pl.DataFrame(
            [
                frame.to_series(users).alias("user_id"),
                frame.to_series(items).alias("item_id"),
                frame.to_series(2).alias("rating"),
                frame.to_series(3).alias("timestamp"),
            ]
        )
    return build(
        lambda rows: Interactions.from_frame(rows, str(path), config.seed),
        frame,
        BadRows(path, config.text_options),
        lambda rows: [f"row {row + 1}" for row in rows],
    )


def _users_and_items(frame: pl.DataFrame, catalog: Catalog | None, path: Path) -> tuple[int, int]:
    """Which of the first two columns holds the users, and which the items: the releases differ in that.

    The items are those of the catalogue; without one, they begin with B or, for books, with a digit.
    """
    columns = [frame.to_series(place).drop_nulls() for place in (0, 1)]
    if catalog is not None:
        known = catalog.frame["item_id"].implode()
        shares = [column.is_in(known).mean() for column in columns]
    else:
        shares = [column.str.contains("^[B0-9]").mean() for column in columns]
    first, second = (float(share or 0) for share in shares)  # type: ignore[arg-type]
    if abs(first - second) < 0.5:
        raise UserError(
            f"{path}: can't tell users from items in the first two columns; write a line user_id,item_id,rating,"
            "timestamp (or as they stand) above the rows and use --data.format table"
        )
    return (1, 0) if first > second else (0, 1)


def _events(path: Path, options: TextOptions) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {name: [] for name in _REVIEW_2018}
    bad = BadRows(path, options)
    for number, record in track(read_records(path, options=options, bad=bad), f"reading {path.name}", unit="lines"):
        names = _REVIEW_2023 if "parent_asin" in record else _REVIEW_2018
        user, item, time = (record.get(names[name]) for name in ("user_id", "item_id", "timestamp"))
        rating = record.get(names["rating"])
        wrong = ""
        if not (isinstance(user, str) and user and isinstance(item, str) and item):
            wrong = f"expected texts {names['user_id']} and {names['item_id']}, found {user!r} and {item!r}"
        elif type(time) is not int or abs(time) >= 2**62:
            wrong = f"{names['timestamp']} is {time!r}; expected a whole number"
        elif rating is not None and not (type(rating) in (int, float) and abs(rating) < 1e9):
            wrong = f"{names['rating']} is {rating!r}; expected a number"
        if wrong:
            bad.add(f"line {number}", wrong)
            continue
        values = (user, item, time, rating, clean_text(record.get(names["review"])))
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    bad.report()
    types = {"timestamp": pl.Int64, "rating": pl.Float64}
    return pl.DataFrame([pl.Series(n, v, types.get(n, pl.String), strict=False) for n, v in columns.items()])


def _items(path: Path, options: TextOptions) -> Catalog:
    bad = BadRows(path, options)
    rows: dict[str, dict[str, str]] = {}
    repeated = 0
    for number, record in track(read_records(path, True, options, bad), f"reading {path.name}", unit="lines"):
        item = record.get("parent_asin", record.get("asin"))
        if not isinstance(item, str) or not item:
            bad.add(f"line {number}", f"expected a text parent_asin or asin, found {item!r}")
        elif item in rows:  # the published files contain some items more than once
            repeated += 1
        else:
            rows[item] = {"item_id": item, **_item_fields(record)}
    bad.report()
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
