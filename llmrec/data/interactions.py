"""The log of interactions (user, item, time), and its split into train, validation and test part."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from llmrec.console import get_logger
from llmrec.data.bad_rows import RowsError
from llmrec.data.catalog import Catalog
from llmrec.data.files import id_column, read_table, require_column
from llmrec.data.sequences import PARTS, TEST, TRAIN, VALID, EvalExamples, Sequences, item_rows
from llmrec.errors import UserError

log = get_logger(__name__)

_TIME_NAME = re.compile(r"time|date|stamp|when|day|hour|month|year|created|epoch|_at$|^ts$|^t$", re.IGNORECASE)
_TIME_VALUE = re.compile(r"\d{4}-\d\d|\d{1,2}[/.]\d{1,2}[/.]\d{2}|\d{9,19}(\.\d+)?$")
_FLAGS = {
    "user_id": "user",
    "item_id": "item",
    "timestamp": "time",
    "rating": "rating",
    "review": "review",
}


class Interactions:
    """E events, one per row of a frame.

    Columns: `user_id` and `item_id` (text), `timestamp` (int64, from seconds to nanoseconds as in the source; null in
    all rows if only the order is known), optionally `rating` (float64) and `review` (text). The rows of a user are
    adjacent and in time order.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        """`frame` must already have the form above; `from_frame` accepts other frames."""
        self.frame = frame

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, source: str = "the interactions", seed: int = 0) -> Self:
        """Build a log from a frame with `user_id`, `item_id` and optionally `timestamp`, `rating`, `review`.

        Rows are sorted by user and time. A user's events with equal times are shuffled: many logs store only the day
        and list the items of a day by id, so their order in the file means nothing. Without timestamps, the rows of a
        user keep their order.

        Args:
            frame: one row per event.
            source: name of the data in messages.
            seed: seed of the shuffle.

        Raises:
            UserError: for a missing column, an empty id, or a timestamp or rating that cannot be read.
        """
        for name in ("user_id", "item_id"):
            require_column(frame, name, source, f"the column of {name.removesuffix('_id')} ids")
        columns = [id_column(frame[name], source) for name in ("user_id", "item_id")]
        if "timestamp" not in frame.columns:
            frame = frame.with_columns(timestamp=None)
        columns.append(_as_timestamps(frame["timestamp"], source))
        if "rating" in frame.columns:
            columns.append(_as_numbers(frame["rating"], source))
        if "review" in frame.columns:
            columns.append(frame["review"].cast(pl.String).fill_null(""))
        events = pl.DataFrame(columns)
        return cls(events[_order(events, seed)])

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        user_column: str = "user_id",
        item_column: str = "item_id",
        time_column: str | None = "timestamp",
        rating_column: str | None = None,
        review_column: str | None = None,
        seed: int = 0,
    ) -> Self:
        """Read a CSV, TSV, JSONL or parquet file (text files also .gz).

        `time_column=None` means that the rows of each user are already in time order.

        Raises:
            UserError: for a missing or unreadable file, a missing column, or a frame that `from_frame` refuses.
        """
        columns = {
            "user_id": user_column,
            "item_id": item_column,
            "timestamp": time_column,
            "rating": rating_column,
            "review": review_column,
        }
        return cls.from_frame(select_columns(read_table(path), columns, str(path)), str(path), seed)

    def __len__(self) -> int:
        return self.frame.height

    def __repr__(self) -> str:
        users, items = (self.frame[name].n_unique() for name in ("user_id", "item_id"))
        return f"Interactions({len(self)} events; {users} users, {items} items)"

    @property
    def has_timestamps(self) -> bool:
        """Whether the times of the events are known, not only their order."""
        return len(self) > 0 and not self.frame["timestamp"].null_count()

    def leave_one_out(self) -> "Split":
        """Split: each user's last event is the test target, the one before it the validation target."""

        return leave_one_out(self)

    def timestamp_split(self, valid_share: float = 0.1, test_share: float = 0.1) -> "Split":
        """Split at two points in time, the same for all users; raises UserError for a log without timestamps."""

        return timestamp_split(self, valid_share, test_share)

    def to_parquet(self, path: str | Path) -> None:
        """Write the frame to a parquet file."""
        self.frame.write_parquet(path)

    @classmethod
    def from_parquet(cls, path: str | Path) -> Self:
        """Read a file that `to_parquet` wrote, in its order; raises UserError if it is missing or damaged."""
        frame = read_table(path)
        for name in ("user_id", "item_id", "timestamp"):
            require_column(frame, name, path, "as to_parquet writes it")
        return cls(frame)


def select_columns(frame: pl.DataFrame, columns: dict[str, str | None], source: str) -> pl.DataFrame:
    """Select the columns of the events and give them the names that llmrec uses.

    A table without the column "timestamp", and without any that could hold times, counts as one in time order.

    Args:
        frame: the table as read.
        columns: name in llmrec -> name in the table, None if the table has no such column.
        source: name of the data in messages.

    Raises:
        UserError: for a missing column.
    """
    wanted = {ours: theirs for ours, theirs in columns.items() if theirs is not None}
    if wanted.get("timestamp") == "timestamp" and not _may_hold_times(frame, wanted.values()):
        log.warning("%s: no column of times; the rows of each user count as in time order", source)
        del wanted["timestamp"]
    for ours, theirs in wanted.items():
        hint = "; if no column holds times, --data.columns.time null takes the rows as in time order"
        require_column(frame, theirs, source, f"--data.columns.{_FLAGS[ours]}", hint if ours == "timestamp" else "")
    return frame.select(pl.col(theirs).alias(ours) for ours, theirs in wanted.items())


def _may_hold_times(frame: pl.DataFrame, used: Iterable[str]) -> bool:
    """Whether "timestamp" is a column, or another column that is not `used` has the name or the first value of one."""
    others = [name for name in frame.columns if name == "timestamp" or name not in set(used)]
    first = {name: str(value) for name, value in zip(frame.columns, next(iter(frame.head(1).rows()), ()), strict=False)}
    return any(_TIME_NAME.search(name) or _TIME_VALUE.match(first.get(name, "")) for name in others)


def numbered(values: pl.Series) -> np.ndarray:
    """int64 [E], the position of each value among the sorted distinct values: [b, a, b] -> [1, 0, 1]."""
    distinct = pl.DataFrame({"value": values.unique().sort()}).with_row_index("number")
    found = pl.DataFrame({"value": values}).join(distinct, on="value", how="left", maintain_order="left")
    return found["number"].to_numpy().astype(np.int64)


def _order(frame: pl.DataFrame, seed: int) -> np.ndarray:
    """Row numbers sorted by user, time, and a hash of user, item and seed; without times, by user in file order.

    Three sorts by one number each take a quarter of the time of one sort by several columns.
    """
    users = numbered(frame["user_id"])
    if frame["timestamp"].null_count():
        return np.argsort(users, kind="stable")
    shuffled = np.argsort(frame.select(pl.struct("user_id", "item_id").hash(seed)).to_series(), kind="stable")
    moments, moment = np.unique(frame["timestamp"].to_numpy(), return_inverse=True)
    keys = users * len(moments) + moment  # below E squared, so int64 suffices
    return shuffled[np.argsort(keys[shuffled], kind="stable")]


def _as_timestamps(values: pl.Series, source: str) -> pl.Series:
    """Times as int64: numbers stay, without fractions; dates and ISO times become seconds since 1970 (UTC)."""
    if values.null_count() == len(values):
        return pl.Series("timestamp", [None] * len(values), dtype=pl.Int64)
    times = _parse_times(values)
    bad = times.is_null().arg_true()
    if len(bad):
        expected = "a number of seconds, milli-, micro- or nanoseconds, or a date such as 2024-05-31 12:00:00"
        raise RowsError(source, bad.to_list(), lambda row: f"timestamp {values[row]!r}; expected {expected}")
    return times.alias("timestamp")


def _parse_times(values: pl.Series) -> pl.Series:
    """Times as Int64, null for a value that cannot be read."""
    if values.dtype in (pl.Date, pl.Datetime):
        return values.dt.epoch("s")
    if values.dtype == pl.String:
        texts = values.str.strip_chars()
        times = texts.cast(pl.Int64, strict=False)
        if times.null_count():  # try integers, fractions, dates: the fastest first
            times = times.fill_null(texts.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False))
        if times.null_count():
            dates = [_parse_date(text) if time is None else None for text, time in zip(texts, times, strict=True)]
            times = times.fill_null(pl.Series(dates, dtype=pl.Int64))
        return times
    if values.dtype.is_numeric():
        return values.cast(pl.Int64, strict=False)
    return pl.Series([None] * len(values), dtype=pl.Int64)


def _parse_date(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp())
    except (ValueError, OverflowError):
        return None


def _as_numbers(values: pl.Series, source: str) -> pl.Series:
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object):
        raise UserError(f"{source}: {values.name} holds {values.dtype}; expected numbers")
    numbers = values.cast(pl.Float64, strict=False)
    bad = (numbers.is_null() & values.is_not_null()).arg_true()
    if len(bad):
        raise RowsError(source, bad.to_list(), lambda row: f"{values.name} {values[row]!r}; expected a number")
    return numbers


class Split:
    """A log whose frame has a `part` column (uint8: TRAIN, VALID, TEST), which does not decrease within a user.

    `protocol` describes the split: its kind, the number of events per part, the cut timestamps if there are any, and
    the cold-start settings that `llmrec.data.prepare` applied.
    """

    def __init__(self, frame: pl.DataFrame, protocol: dict[str, Any]) -> None:
        self.frame = frame
        self.protocol = protocol

    def __repr__(self) -> str:
        return f"Split({self.protocol['kind']}; {self.protocol['events']})"

    def part(self, part: int) -> Interactions:
        """The events of one part."""
        return Interactions(self.frame.filter(pl.col("part") == part).drop("part"))

    @property
    def train(self) -> Interactions:
        """The events to learn from."""
        return self.part(TRAIN)

    @property
    def valid(self) -> Interactions:
        """The events to choose settings on."""
        return self.part(VALID)

    @property
    def test(self) -> Interactions:
        """The events to measure on."""
        return self.part(TEST)

    def sequences(self, catalog: Catalog) -> "Sequences":
        """The log as arrays, with items as rows of the catalogue and users in the order of the frame.

        Raises:
            UserError: for an item that is not in the catalogue.
        """
        items = item_rows(self.frame["item_id"], catalog.frame["item_id"])
        users = self.frame["user_id"].rle().struct.unnest()
        return Sequences(
            users=users["value"].to_list(),
            offsets=np.concatenate([[0], np.cumsum(users["len"].to_numpy())]).astype(np.int64),
            items=items,
            parts=self.frame["part"].to_numpy().astype(np.uint8),
            times=None if self.frame["timestamp"].null_count() else self.frame["timestamp"].to_numpy(),
        )

    def validation_examples(self, catalog: Catalog) -> "EvalExamples":
        """The validation cases for early stopping: the cases of `calibration_examples` whose target is a warm item.

        Raises:
            UserError: for an item that is not in the catalogue.
        """
        sequences = self.sequences(catalog)
        cases = self._validation(sequences)
        return cases.where(sequences.train_counts(len(catalog))[cases.targets] > 0)

    def calibration_examples(self, catalog: Catalog) -> "EvalExamples":
        """One case for each validation event with a history, for warm and cold items: to learn the fusion weights.

        The cold users of the protocol are left out.

        Raises:
            UserError: for an item that is not in the catalogue.
        """
        return self._validation(self.sequences(catalog))

    def _validation(self, sequences: "Sequences") -> "EvalExamples":
        cases = sequences.cases(VALID, every=True)
        if not self.protocol.get("cold_users"):
            return cases
        return cases.where(sequences.parts[sequences.offsets[cases.users]] == TRAIN)

    def with_frame(self, frame: pl.DataFrame, **protocol: Any) -> "Split":
        """A split of other events: the same protocol, updated with the new event counts and `protocol`."""
        return Split(frame, {**self.protocol, **protocol, "events": _events(frame)})


def leave_one_out(log: Interactions) -> Split:
    """Each user's last event is the test target, the one before it the validation target, the rest is for training.

    All events of users with fewer than three events are for training: no history would be left for validation.
    """
    lengths = log.frame["user_id"].rle().struct.field("len").to_numpy()
    ends = np.cumsum(lengths)[lengths >= 3]
    parts = np.full(len(log), TRAIN, dtype=np.uint8)
    parts[ends - 2] = VALID
    parts[ends - 1] = TEST
    frame = log.frame.with_columns(pl.Series("part", parts))
    return Split(frame, {"kind": "leave-one-out", "events": _events(frame)})


def timestamp_split(log: Interactions, valid_share: float = 0.1, test_share: float = 0.1) -> Split:
    """Split the log at two timestamps, the same for all users.

    Events before the first cut are for training, events from the first cut on for validation, events from the second
    cut on for testing. Shares `valid_share + test_share` and `test_share` of the events lie at or after the cuts.
    Events with equal times stay in one part, so the real shares may differ; the protocol has the real counts.

    Raises:
        UserError: for a log without timestamps, shares that leave no training part, or an empty part.
    """
    if not log.has_timestamps:
        raise UserError("--data.split timestamp: the log has no timestamps; use --data.split leave-one-out")
    if min(valid_share, test_share) <= 0 or valid_share + test_share >= 1:
        raise UserError(
            f"--data.valid_share {valid_share} and --data.test_share {test_share}: expected two shares above "
            "0 that leave some of the events for training"
        )
    times = np.sort(log.frame["timestamp"].to_numpy())
    first = int(times[int(len(times) * (1 - valid_share - test_share))])
    second = int(times[int(len(times) * (1 - test_share))])
    part = (pl.col("timestamp") >= first).cast(pl.UInt8) + (pl.col("timestamp") >= second).cast(pl.UInt8)
    frame = log.frame.with_columns(part.alias("part"))
    events = _events(frame)
    if empty := [name for name, count in events.items() if not count]:
        raise UserError(
            f"--data.split timestamp: cuts at {first} and {second} leave the {empty[0]} part empty; "
            "change --data.valid_share or --data.test_share, or use --data.split leave-one-out"
        )
    return Split(frame, {"kind": "timestamp", "cuts": [first, second], "events": events})


def _events(frame: pl.DataFrame) -> dict[str, int]:
    counts = np.bincount(frame["part"].to_numpy(), minlength=len(PARTS))
    return dict(zip(PARTS, counts.tolist(), strict=True))
