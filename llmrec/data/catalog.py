"""The catalogue: all items that can be recommended, with their texts."""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import polars as pl

from llmrec.checks import checked
from llmrec.console import get_logger
from llmrec.data.bad_rows import RowsError
from llmrec.data.files import ITEM_NAMES, read_table, require_column
from llmrec.data.frames import as_frame, check_columns, written
from llmrec.data.ids import id_column
from llmrec.data.images import image_sources
from llmrec.data.text import fill_template, parse_template, plain_text
from llmrec.errors import UserError

log = get_logger(__name__)

_NOT_PLAIN = r"[<&]|^\s|\s$|\s\s|[^\S ]"
"""Pattern of the texts that `plain_text` may change."""


CHUNKS = 64
"""Most chunks of rows in a column that items are added to; more make every search slow."""


class Catalog:
    """N items: a frame with `item_id` (unique, not empty), `title` and further text fields; a missing text is "".

    All other modules of llmrec identify an item by its row number in this frame.
    """

    MADE_BY: ClassVar[str] = "Catalog.from_file or Catalog.from_frame"

    def __init__(self, frame: pl.DataFrame, images: Mapping[str, str] | None = None) -> None:
        """`frame` must already have the form above; `from_frame` accepts other frames.

        `images` has the path or data URI of an item's image under the item's id, for the items that have one.

        Raises:
            UserError: the frame has no `item_id`, or a column that is not text.
        """
        names = ["item_id", *getattr(frame, "columns", ())]
        check_columns(frame, dict.fromkeys(names, (pl.String,)), Catalog, self.MADE_BY)
        self.frame = frame
        self.images = images or {}

    @classmethod
    def from_frame(cls, frame: Any, source: str = "the items") -> Self:
        """Build a catalogue from any table with an `item_id` column.

        Lists are joined with ", ", and numbers become text. HTML tags are removed, entities decoded, and white space
        is collapsed. Columns that hold no text (images, nested records) are left out, and a log message names them.

        Args:
            frame: one row per item: a polars, pandas or Arrow table, a list of dicts, or a dict of columns.
            source: name of the data in messages.

        Raises:
            UserError: there is no `item_id` column, an item id is empty or repeated, or there are no items.
        """
        frame = as_frame(frame, source)
        require_column(frame, "item_id", source, "the column of item ids")
        ids = id_column(frame["item_id"], source)
        if not len(ids):
            raise UserError(f"{source}: no items; expected at least one row")
        _check_unique(ids, source)
        columns = {name: _as_text(frame[name]) for name in frame.columns if name != "item_id"}
        if skipped := [name for name, values in columns.items() if values is None]:
            log.info("%s: left out columns that hold no text: %s", source, ", ".join(skipped))
        texts = {name: _cleaned(values) for name, values in columns.items() if values is not None}
        title = texts.pop("title", pl.Series("title", [""] * len(ids)))
        return cls(pl.DataFrame([ids, title, *texts.values()]))

    @classmethod
    @checked
    def from_file(
        cls,
        path: str | Path,
        item_column: str = "item_id",
        title_column: str = "title",
        image_column: str | None = None,
    ) -> Self:
        """Read a CSV, TSV, JSONL or parquet file (text files also .gz).

        Raises:
            UserError: for a missing or unreadable file, a missing column, or a frame that `from_frame` refuses.
        """
        return cls.from_table(read_table(path), str(path), item_column, title_column, image_column)

    @classmethod
    def from_table(
        cls, frame: pl.DataFrame, source: str, item_column: str, title_column: str, image_column: str | None = None
    ) -> Self:
        """Build a catalogue from a frame whose columns of ids and titles have other names.

        Args:
            frame: one row per item.
            source: the file that it comes from; paths of images are relative to its folder.
            item_column: its column of ids.
            title_column: its column of titles.
            image_column: its column of images, as `image_sources` reads it, which is no text; None if it has none.

        Raises:
            UserError: for a missing column, a column of images of another type, or a frame that `from_frame` refuses.
        """
        require_column(frame, item_column, source, "the column of item ids", ITEM_NAMES)
        require_column(frame, title_column, source, "--data.columns.title")
        places = [""] * len(frame)
        if image_column is not None:
            require_column(frame, image_column, source, "--data.columns.image")
            places = image_sources(frame[image_column], Path(source).absolute().parent, source)
            frame = frame.drop(image_column)
        catalog = cls.from_frame(frame.rename(_renaming(frame, item_column, title_column)), source)
        catalog.images = {item: place for item, place in zip(catalog.ids, places, strict=True) if place}
        return catalog

    def __len__(self) -> int:
        return self.frame.height

    def __repr__(self) -> str:
        return f"Catalog({len(self)} items; {', '.join(self.fields)})"

    @cached_property
    def ids(self) -> list[str]:
        """Item ids in row order."""
        return self.frame["item_id"].to_list()

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Item id -> row."""
        return {item: row for row, item in enumerate(self.ids)}

    @property
    def fields(self) -> list[str]:
        """Names of the text fields."""
        return [name for name in self.frame.columns if name != "item_id"]

    @property
    def whole_text(self) -> str:
        """The template of all fields, the title first: "{title}. {brand}. {categories}"."""
        return ". ".join(f"{{{field}}}" for field in self.fields)

    @checked
    def texts(self, template: str) -> list[str]:
        """Fill a template such as `"{title}. {brand}. {categories}"` for each item.

        An empty field is left out together with its label and the punctuation after it. White space is collapsed.

        Returns:
            N texts, in row order.

        Raises:
            UserError: for a malformed template, or a field that the catalogue does not have.
        """
        slots = parse_template(template, self.fields)
        used = list(dict.fromkeys(slot.field for slot in slots))
        rows = zip(*(self.frame[name] for name in used), strict=True)
        return [fill_template(slots, dict(zip(used, values, strict=True))) for values in rows]

    def row(self, item_id: str) -> dict[str, str]:
        """All columns of one item, by name; raises KeyError for an unknown item id."""
        return self.frame.row(self.index[item_id], named=True)

    def take_rows(self, rows: Sequence[int] | pl.Series) -> "Catalog":
        """A catalogue of the given rows, in the given order; negative numbers count from the end.

        Raises:
            UserError: there is no such row.
        """
        try:
            return Catalog(self.frame[pl.Series(rows, dtype=pl.Int64)], self.images)
        except (pl.exceptions.PolarsError, TypeError, ValueError, IndexError):
            raise UserError(f"rows: expected a list of row numbers below {len(self)}, found others in it.") from None

    def filter(self, kept: pl.Series | pl.Expr) -> "Catalog":
        """A catalogue of the rows where `kept`, bool [N] or an expression over the columns, is true, in their order.

        Raises:
            UserError: `kept` is not bool [N], or the expression fails.
        """
        try:
            mask = self.frame.select(kept=kept)["kept"] if isinstance(kept, pl.Expr) else pl.Series(kept)
            if len(mask) == len(self):
                return Catalog(self.frame.filter(mask), self.images)
            reason = f"found {len(mask)} values for {len(self)} items"
        except (pl.exceptions.PolarsError, TypeError) as error:
            reason = str(error).splitlines()[0]
        raise UserError(f"kept: expected one bool per item, or an expression over the columns: {reason}.")

    def with_items(self, items: "Catalog", rows: np.ndarray) -> "Catalog":
        """A catalogue with `items`, which have the same columns in the same order; images are left out.

        If nothing is replaced, the two catalogues share the memory of the present rows, and of `index` if it is there.

        Args:
            items: n items.
            rows: int64 [n], the row that each of them replaces, which has the same id; -1 for one that comes last.
        """
        frame, new = self.frame, rows < 0
        if not new.all():
            order = np.arange(len(self))
            order[rows[~new]] = len(self) + np.flatnonzero(~new)
            frame = pl.concat([frame, items.frame])[order]
        added = items.frame.filter(pl.Series(new))
        other = Catalog(pl.concat([frame, added], rechunk=frame.n_chunks() >= CHUNKS))
        if "index" in vars(self):
            recent, index = self.index.maps if isinstance(self.index, ChainMap) else ({}, self.index)
            new_rows = range(len(self), len(other))
            recent = {**recent, **dict(zip(added["item_id"], new_rows, strict=True))}
            other.index = ChainMap(recent, cast(dict[str, int], index))
        return other

    @checked
    def to_parquet(self, path: str | Path) -> None:
        """Write the frame to a parquet file; raises UserError if it can't be written."""
        with written(path):
            self.frame.write_parquet(path)

    @classmethod
    @checked
    def from_parquet(cls, path: str | Path) -> Self:
        """Read a file that `to_parquet` wrote; raises UserError for a missing, damaged or different file."""
        return cls.from_frame(read_table(path), str(path))


def _renaming(frame: pl.DataFrame, item_column: str, title_column: str) -> dict[str, str]:
    """Old -> new column names; another column that already has the new name "x" gets underscores: "x_"."""
    wanted = {item_column: "item_id", title_column: "title"}
    renaming = {old: new for old, new in wanted.items() if old != new}
    taken = {*frame.columns, *wanted.values()}
    for name in wanted.values():
        if name in frame.columns and name not in wanted:
            free = name
            while free in taken:
                free += "_"
            taken.add(free)
            renaming[name] = free
    return renaming


def _check_unique(ids: pl.Series, source: str) -> None:
    repeated = ids.is_first_distinct().not_().arg_true()
    if len(repeated):
        item, second = ids[repeated[0]], int(repeated[0])
        first = ids.index_of(item)
        assert first is not None
        raise RowsError(
            source,
            repeated.to_list(),
            lambda row: f"item id {ids[row]!r} stands in an earlier row too",
            f"{source}: item id {item!r} stands in rows {first + 1} and {second + 1} "
            f"({len(repeated)} repeated rows in all); expected one row per item, so drop or merge the repeats",
        )


def _cleaned(values: pl.Series) -> pl.Series:
    """The texts as `plain_text` returns them."""
    rows = values.str.contains(_NOT_PLAIN).arg_true()
    return values.clone().scatter(rows, [plain_text(text) for text in values[rows]]) if len(rows) else values


def _as_text(values: pl.Series) -> pl.Series | None:
    """The column as text with "" for missing values, or None if its type holds no text."""
    if isinstance(values.dtype, pl.List | pl.Array):
        inner = values.dtype.inner
        if isinstance(inner, pl.DataType) and (inner.is_nested() or inner == pl.Binary):
            return None
        if isinstance(values.dtype, pl.Array):
            values = values.arr.to_list()
        values = values.cast(pl.List(pl.String)).list.drop_nulls().list.join(", ")
    elif values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object, pl.Duration):
        return None
    elif values.dtype.is_float():
        values = values.fill_nan(None)
    return values.cast(pl.String).fill_null("")
