"""The log: who did something with which item, and when."""

from datetime import datetime
from os import PathLike
from typing import TYPE_CHECKING, Self

import polars as pl

from llmrec.data.files import id_column, read_table, require_column
from llmrec.errors import UserError

if TYPE_CHECKING:
    from llmrec.data.split import Split


class Interactions:
    """E events: `user_id`, `item_id` (text), `timestamp` (int64, seconds or milliseconds as found; null
    throughout when only the order is known), optionally `rating` (float64) and `review` (text).

    A user's rows stand in time order.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        """`frame` must already be as described; use `from_frame` for anything else."""
        self.frame = frame

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, source: str = "the interactions", seed: int = 0) -> Self:
        """A log of a frame with `user_id`, `item_id` and optionally `timestamp`, `rating`, `review`.

        With timestamps, rows are sorted by user and time; equal times of a user are shuffled by `seed`, whatever
        their order in the file (many logs know only the day and list items by id). Without, the order is kept.

        Raises:
            UserError: for a missing column, an empty id, or a timestamp or rating that cannot be read.
        """
        for name in ("user_id", "item_id"):
            require_column(frame, name, source, f"the column of {name.removesuffix('_id')} ids")
        columns = [id_column(frame[name], source) for name in ("user_id", "item_id")]
        times = (
            frame["timestamp"]
            if "timestamp" in frame.columns
            else pl.Series("timestamp", [None] * len(frame))
        )
        columns.append(_as_timestamps(times, source))
        if "rating" in frame.columns:
            columns.append(_as_numbers(frame["rating"], source))
        if "review" in frame.columns:
            columns.append(frame["review"].cast(pl.String).fill_null(""))
        events = cls(pl.DataFrame(columns))
        return cls(_in_time_order(events.frame, seed)) if events.has_timestamps else events

    @classmethod
    def from_file(
        cls,
        path: str | PathLike[str],
        user_column: str = "user_id",
        item_column: str = "item_id",
        time_column: str | None = "timestamp",
        rating_column: str | None = None,
        review_column: str | None = None,
        seed: int = 0,
    ) -> Self:
        """Read a CSV, TSV, JSONL or parquet file (text files also .gz).

        `time_column=None` says that the rows of each user already stand in time order.

        Raises:
            UserError: for a missing or unreadable file, a missing column, or what `from_frame` refuses.
        """
        flags = {
            "user_id": user_column,
            "item_id": item_column,
            "timestamp": time_column,
            "rating": rating_column,
            "review": review_column,
        }
        return cls.from_frame(select_columns(read_table(path), flags, str(path)), str(path), seed)

    def __len__(self) -> int:
        return self.frame.height

    def __repr__(self) -> str:
        users, items = (self.frame[name].n_unique() for name in ("user_id", "item_id"))
        return f"Interactions({len(self)} events; {users} users, {items} items)"

    @property
    def has_timestamps(self) -> bool:
        """Whether the times of the events are known, not only their order."""
        return len(self) > 0 and self.frame["timestamp"].null_count() == 0

    def leave_one_out(self) -> "Split":
        """Each user's last event is the test target, the one before it the validation target."""
        from llmrec.data.split import leave_one_out

        return leave_one_out(self)

    def timestamp_split(self, valid_share: float = 0.1, test_share: float = 0.1) -> "Split":
        """Cut the log at two moments, for all users alike; raises UserError without timestamps."""
        from llmrec.data.split import timestamp_split

        return timestamp_split(self, valid_share, test_share)

    def to_parquet(self, path: str | PathLike[str]) -> None:
        """Write the frame as it is."""
        self.frame.write_parquet(path)

    @classmethod
    def from_parquet(cls, path: str | PathLike[str]) -> Self:
        """Read what `to_parquet` wrote, in its order; raises UserError for a missing or damaged file."""
        frame = read_table(path)
        for name in ("user_id", "item_id", "timestamp"):
            require_column(frame, name, path, "as to_parquet writes it")
        return cls(frame)


def select_columns(frame: pl.DataFrame, columns: dict[str, str | None], source: str) -> pl.DataFrame:
    """The events' columns under our names; `columns` maps ours to the file's, None for one that is not there."""
    flags = {
        "user_id": "user",
        "item_id": "item",
        "timestamp": "time",
        "rating": "rating",
        "review": "review",
    }
    wanted = {ours: theirs for ours, theirs in columns.items() if theirs is not None}
    for ours, theirs in wanted.items():
        require_column(frame, theirs, source, f"--data.{flags[ours]}_column")
    return frame.select(pl.col(theirs).alias(ours) for ours, theirs in wanted.items())


def _in_time_order(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    shuffled = pl.struct("user_id", "item_id").hash(seed).alias("_tie")
    by = ["user_id", "timestamp", "_tie"]
    return frame.with_columns(shuffled).sort(by, maintain_order=True).drop("_tie")


def _as_timestamps(values: pl.Series, source: str) -> pl.Series:
    """Integers as they are; dates and ISO times as seconds since 1970 (UTC)."""
    if values.null_count() == len(values):
        return pl.Series("timestamp", [None] * len(values), dtype=pl.Int64)
    times = _parse_times(values)
    bad = times.is_null().arg_true()
    if len(bad):
        found = values[bad[0]]
        raise UserError(
            f"{source}: row {bad[0] + 1} has timestamp {found!r}; expected a number of seconds or milliseconds, "
            "or a date such as 2024-05-31 12:00:00"
        )
    return times.alias("timestamp")


def _parse_times(values: pl.Series) -> pl.Series:
    """Int64 with null for what cannot be read."""
    if values.dtype in (pl.Date, pl.Datetime):
        return values.dt.epoch("s")
    if values.dtype == pl.String:
        numbers = values.str.strip_chars().cast(pl.Int64, strict=False)
        if numbers.null_count() == 0:
            return numbers
        fractions = values.str.strip_chars().cast(pl.Float64, strict=False)
        if fractions.null_count() == 0:
            return fractions.cast(pl.Int64, strict=False)
        return pl.Series([_parse_date(text) for text in values], dtype=pl.Int64)
    if values.dtype.is_numeric():
        return values.cast(pl.Int64, strict=False)
    return pl.Series([None] * len(values), dtype=pl.Int64)


def _parse_date(text: str | None) -> int | None:
    from datetime import UTC

    try:
        moment = datetime.fromisoformat(text.strip()) if text else None
    except ValueError:
        return None
    if moment is None:
        return None
    return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp())


def _as_numbers(values: pl.Series, source: str) -> pl.Series:
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object):
        raise UserError(f"{source}: {values.name} holds {values.dtype}; expected numbers")
    numbers = values.cast(pl.Float64, strict=False)
    bad = (numbers.is_null() & values.is_not_null()).arg_true()
    if len(bad):
        raise UserError(f"{source}: row {bad[0] + 1} has {values.name} {values[bad[0]]!r}; expected a number")
    return numbers
