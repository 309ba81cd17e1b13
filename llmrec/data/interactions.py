"""The log: who did something with which item, and when."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from llmrec.data.catalog import Catalog
from llmrec.data.files import id_column, read_table, require_column
from llmrec.data.sequences import PARTS, TEST, TRAIN, VALID, EvalExamples, Sequences, item_rows
from llmrec.errors import UserError

_FLAGS = {
    "user_id": "user",
    "item_id": "item",
    "timestamp": "time",
    "rating": "rating",
    "review": "review",
}


class Interactions:
    """E events: `user_id`, `item_id` (text), `timestamp` (int64, seconds or milliseconds as found; null
    throughout when only the order is known), optionally `rating` (float64) and `review` (text).

    A user's rows stand together, in time order.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        """`frame` must already be as described; use `from_frame` for anything else."""
        self.frame = frame

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, source: str = "the interactions", seed: int = 0) -> Self:
        """A log of a frame with `user_id`, `item_id` and optionally `timestamp`, `rating`, `review`.

        Rows are sorted by user and time. A user's events of one moment are shuffled by `seed`, whatever their
        order in the file: many logs know only the day and list a day's items by id. Without timestamps, a
        user's rows keep their order.

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

        `time_column=None` says that the rows of each user already stand in time order.

        Raises:
            UserError: for a missing or unreadable file, a missing column, or what `from_frame` refuses.
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
        """Each user's last event is the test target, the one before it the validation target."""

        return leave_one_out(self)

    def timestamp_split(self, valid_share: float = 0.1, test_share: float = 0.1) -> "Split":
        """Cut the log at two moments, for all users alike; raises UserError without timestamps."""

        return timestamp_split(self, valid_share, test_share)

    def to_parquet(self, path: str | Path) -> None:
        """Write the frame as it is."""
        self.frame.write_parquet(path)

    @classmethod
    def from_parquet(cls, path: str | Path) -> Self:
        """Read what `to_parquet` wrote, in its order; raises UserError for a missing or damaged file."""
        frame = read_table(path)
        for name in ("user_id", "item_id", "timestamp"):
            require_column(frame, name, path, "as to_parquet writes it")
        return cls(frame)


def select_columns(frame: pl.DataFrame, columns: dict[str, str | None], source: str) -> pl.DataFrame:
    """The events' columns under our names; `columns` maps ours to the file's, None where there is none."""
    wanted = {ours: theirs for ours, theirs in columns.items() if theirs is not None}
    for ours, theirs in wanted.items():
        require_column(frame, theirs, source, f"--data.columns.{_FLAGS[ours]}")
    return frame.select(pl.col(theirs).alias(ours) for ours, theirs in wanted.items())


def numbered(values: pl.Series) -> np.ndarray:
    """int64 [E], each value's place among the sorted distinct values."""
    distinct = pl.DataFrame({"value": values.unique().sort()}).with_row_index("number")
    found = pl.DataFrame({"value": values}).join(distinct, on="value", how="left", maintain_order="left")
    return found["number"].to_numpy().astype(np.int64)


def _order(frame: pl.DataFrame, seed: int) -> np.ndarray:
    """Rows by user, by time, and by a hash of user, item and seed; without times, by user as they stood.

    Three sorts of single numbers take a quarter of the time of one by several columns.
    """
    users = numbered(frame["user_id"])
    if frame["timestamp"].null_count():
        return np.argsort(users, kind="stable")
    shuffled = np.argsort(frame.select(pl.struct("user_id", "item_id").hash(seed)).to_series(), kind="stable")
    moments, moment = np.unique(frame["timestamp"].to_numpy(), return_inverse=True)
    keys = users * len(moments) + moment  # below E squared, which int64 holds
    return shuffled[np.argsort(keys[shuffled], kind="stable")]


def _as_timestamps(values: pl.Series, source: str) -> pl.Series:
    """Integers as they are; dates and ISO times as seconds since 1970 (UTC)."""
    if values.null_count() == len(values):
        return pl.Series("timestamp", [None] * len(values), dtype=pl.Int64)
    times = _parse_times(values)
    bad = times.is_null().arg_true()
    if len(bad):
        found = values[bad[0]]
        raise UserError(
            f"{source}: row {bad[0] + 1} has timestamp {found!r}; expected a number of seconds or "
            "milliseconds, or a date such as 2024-05-31 12:00:00"
        )
    return times.alias("timestamp")


def _parse_times(values: pl.Series) -> pl.Series:
    """Int64 with null for what cannot be read."""
    if values.dtype in (pl.Date, pl.Datetime):
        return values.dt.epoch("s")
    if values.dtype == pl.String:
        texts = values.str.strip_chars()
        times = texts.cast(pl.Int64, strict=False)
        if times.null_count():  # fractions and dates, each slower to read than the kind before
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
        raise UserError(f"{source}: row {bad[0] + 1} has {values.name} {values[bad[0]]!r}; expected a number")
    return numbers


class Split:
    """A log whose frame has a `part` column (uint8: TRAIN, VALID, TEST), not decreasing along a user's rows.

    `protocol` says how it was made: kind, events per part, the cut timestamps where there are any, and what
    `llmrec.data.prepare` made of it.
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
        """The log as arrays over the catalogue's rows; users in the order of their rows.

        Raises:
            UserError: for an item that the catalogue lacks.
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
        """Validation examples to stop a training by: those of `calibration_examples` with a warm target.

        Raises:
            UserError: for an item that the catalogue lacks.
        """
        sequences = self.sequences(catalog)
        cases = self._validation(sequences)
        return cases.where(sequences.train_counts(len(catalog))[cases.targets] > 0)

    def calibration_examples(self, catalog: Catalog) -> "EvalExamples":
        """All validation events, those of cold items included, to fit the weights of rankings on. Users that the
        protocol sets apart as cold are left out.

        Raises:
            UserError: for an item that the catalogue lacks.
        """
        return self._validation(self.sequences(catalog))

    def _validation(self, sequences: "Sequences") -> "EvalExamples":
        cases = sequences.cases(VALID, every=True)
        if not self.protocol.get("cold_users"):
            return cases
        return cases.where(sequences.parts[sequences.offsets[cases.users]] == TRAIN)

    def with_frame(self, frame: pl.DataFrame, **protocol: Any) -> "Split":
        """The split of other events, with their counts and `protocol` in its protocol."""
        return Split(frame, {**self.protocol, **protocol, "events": _events(frame)})


def leave_one_out(log: Interactions) -> Split:
    """A user's last event is the test target, the one before it the validation target, the rest training.

    Users with fewer than three events only train: they have no history to ask with.
    """
    lengths = log.frame["user_id"].rle().struct.field("len").to_numpy()
    ends = np.cumsum(lengths)[lengths >= 3]
    parts = np.full(len(log), TRAIN, dtype=np.uint8)
    parts[ends - 2] = VALID
    parts[ends - 1] = TEST
    frame = log.frame.with_columns(pl.Series("part", parts))
    return Split(frame, {"kind": "leave-one-out", "events": _events(frame)})


def timestamp_split(log: Interactions, valid_share: float = 0.1, test_share: float = 0.1) -> Split:
    """Train before the first cut, validate from it on, test from the second on; same cuts for all users.

    The cuts are the timestamps at which `valid_share + test_share` and `test_share` of the events remain;
    events of one moment stay together, so the real shares may differ and stand in the protocol.

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
