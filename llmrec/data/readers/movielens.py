"""MovieLens folders as published (https://grouplens.org/datasets/movielens/): the CSV releases, the 1M layout
(ratings.dat, movies.dat) and the 100K layout (u.data, u.item, u.genre)."""

from pathlib import Path

import polars as pl

from llmrec.data.bad_rows import BadRows, TextOptions
from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import read_separated, require_column, require_file, require_folder
from llmrec.data.interactions import Interactions
from llmrec.data.lines import read_lines
from llmrec.errors import UserError

_LAYOUTS = (("ratings.csv", "movies.csv"), ("ratings.dat", "movies.dat"), ("u.data", "u.item", "u.genre"))
_EVENT = ["user_id", "item_id", "rating", "timestamp"]
_MOVIE = ["item_id", "title", "categories"]


def files(config: DataConfig) -> list[Path]:
    """The files of the first layout whose ratings file is in the folder."""
    folder = require_folder(config.source)
    for layout in _LAYOUTS:
        if (folder / layout[0]).is_file():
            return [require_file(folder / name) for name in layout]
    raise UserError(f"--data.path: {folder}: no ratings.csv, ratings.dat or u.data; expected a MovieLens folder")


def read(config: DataConfig) -> tuple[Catalog, Interactions]:
    """Read the ratings as events, and the movies as items with title and categories (the genres)."""
    ratings, *movies = files(config)
    options = config.text_options
    if ratings.suffix == ".csv":
        names = {"userId": "user_id", "movieId": "item_id", "rating": "rating", "timestamp": "timestamp"}
        events = _csv(ratings, names, options)
        items = _csv(movies[0], {"movieId": "item_id", "title": "title", "genres": "categories"}, options)
    elif ratings.suffix == ".dat":
        events = _fields(ratings, "::", _EVENT, options)
        items = _fields(movies[0], "::", _MOVIE, options)
    else:
        events = _fields(ratings, "\t", _EVENT, options)
        items = _items_100k(movies[0], movies[1], options)
    genres = pl.col("categories").fill_null("").str.replace("(no genres listed)", "", literal=True)
    items = items.with_columns(genres.str.replace_all("|", ", ", literal=True))
    return Catalog.from_frame(items, str(movies[0])), Interactions.from_frame(events, str(ratings), config.seed)


def _csv(path: Path, names: dict[str, str], options: TextOptions) -> pl.DataFrame:
    frame = read_separated(path, ",", options)
    for name in names:
        require_column(frame, name, path, "as GroupLens publishes it")
    return frame.select(pl.col(theirs).alias(ours) for theirs, ours in names.items())


def _fields(path: Path, separator: str, names: list[str], options: TextOptions) -> pl.DataFrame:
    """Read a table without a header; a separator within a title belongs to the title."""
    rows = []
    bad = BadRows(path, options)
    for number, line in read_lines(path, options, bad):
        values = line.split(separator)
        if len(values) > len(names) == len(_MOVIE):
            values = [values[0], separator.join(values[1:-1]), values[-1]]
        if len(values) == len(names):
            rows.append(values)
        else:
            bad.add(f"line {number}", f"{len(values)} fields between {separator!r}; expected {len(names)}")
    bad.report()
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def _items_100k(movies: Path, genres: Path, options: TextOptions) -> pl.DataFrame:
    """Item ids, titles and genres; u.item has one 0/1 flag per genre, in the order of u.genre."""
    names = _fields(genres, "|", ["genre", "number"], options)["genre"].to_list()
    if not names:
        raise UserError(f"{genres}: no genres; expected a line such as Action|1 for each")
    flags = [f"flag {place}" for place in range(len(names))]
    frame = _fields(movies, "|", ["item_id", "title", "date", "video date", "url", *flags], options)
    set_names = [pl.when(pl.col(f) == "1").then(pl.lit(name)) for f, name in zip(flags, names, strict=True)]
    categories = pl.concat_str(set_names, separator="|", ignore_nulls=True).alias("categories")
    return frame.select("item_id", "title", categories)
