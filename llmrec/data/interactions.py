"""The log of interactions (user, item, time), and its split into train, validation and test part."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl

from llmrec.checks import checked
from llmrec.console import get_logger
from llmrec.data.bad_rows import RowsError
from llmrec.data.catalog import Catalog
from llmrec.data.files import ITEM_NAMES, read_table, require_column
from llmrec.data.frames import as_frame, check_columns, written
from llmrec.data.ids import id_column
from llmrec.data.sequences import PARTS, TEST, TRAIN, VALID, EvalExamples, Sequences, item_rows
from llmrec.data.times import microseconds
from llmrec.errors import UserError

_logger = get_logger(__name__)

_TIME_NAME = re.compile(r"time|date|stamp|when|day|hour|month|year|created|epoch|_at$|^ts$|^t$", re.IGNORECASE)
_TIME_VALUE = re.compile(r"\d{4}-\d\d|\d{1,2}[/.]\d{1,2}[/.]\d{2}|\d{9,19}(\.\d+)?$")
_FLAGS = {
    "user_id": "user",
    "item_id": "item",
    "timestamp": "time",
    "rating": "rating",
    "review": "review",
}

_COLUMNS = {"user_id": (pl.String,), "item_id": (pl.String,), "timestamp": (pl.Int64, pl.Null)}


class Interactions:
    """E events, one per row of a frame.

    Columns: `user_id` and `item_id` (text), `timestamp` (int64, microseconds since 1970 UTC; null in all rows if only
    the order is known), optionally `rating` (float64, null if missing), `review` (text), and `part` (uint8: TRAIN,
    VALID, TEST) of a published split. The rows of a user are adjacent, by part if there is one, and in time order.
    """

    MADE_BY: ClassVar[str] = "Interactions.from_file or Interactions.from_frame, or take split.train"

    def __init__(self, frame: pl.DataFrame) -> None:
        """`frame` must already have the form above; `from_frame` accepts other frames.

        Raises:
            UserError: a column is missing or has another type.
        """
        check_columns(frame, _COLUMNS, Interactions, self.MADE_BY)
        self.frame = frame

    @classmethod
    @checked
    def from_frame(cls, frame: Any, source: str = "the interactions", seed: int = 0) -> Self:
        """Build a log from a table with `user_id`, `item_id` and optionally `timestamp`, `rating`, `review`, `part`.

        Rows are sorted by user and time. A user's events with equal times are shuffled: many logs store only the day
        and list the items of a day by id, so their order in the file means nothing. Without timestamps, the rows of a
        user keep their order.

        Args:
            frame: one row per event: a polars, pandas or Arrow table, a list of dicts, or a dict of columns.
            source: name of the data in messages.
            seed: seed of the shuffle, at least 0.

        Raises:
            UserError: for a missing column, an empty id, or a timestamp, rating, review or part that cannot be read.
        """
        if seed < 0:
            raise UserError(f"seed {seed}: expected at least 0.")
        frame = as_frame(frame, source)
        for name in ("user_id", "item_id"):
            require_column(frame, name, source, f"the column of {name.removesuffix('_id')} ids")
        columns = [id_column(frame[name], source) for name in ("user_id", "item_id")]
        if "timestamp" not in frame.columns:
            frame = frame.with_columns(timestamp=None)
        columns.append(microseconds(frame["timestamp"], source))
        if "rating" in frame.columns:
            columns.append(_as_numbers(frame["rating"], source))
        if "review" in frame.columns:
            columns.append(_as_texts(frame["review"], source))
        if "part" in frame.columns:
            columns.append(_as_parts(frame["part"], source))
        events = pl.DataFrame(columns)
        return cls(events[_order(events, seed)])

    @classmethod
    @checked
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
        return cls.from_frame(
            select_columns(read_table(path, used=used_names(columns)), columns, str(path)), str(path), seed
        )

    def __len__(self) -> int:
        return self.frame.height

    def __repr__(self) -> str:
        users, items = (self.frame[name].n_unique() for name in ("user_id", "item_id"))
        return f"Interactions({len(self)} events; {users} users, {items} items)"

    @property
    def has_timestamps(self) -> bool:
        """Whether the times of the events are known, not only their order."""
        return len(self) > 0 and not self.frame["timestamp"].null_count()

    @checked
    def sequences(self, catalog: Catalog) -> "Sequences":
        """The log as arrays, all of it as the training part; errors as in `Split.sequences`."""
        events = self.frame.with_columns(part=pl.lit(TRAIN, dtype=pl.UInt8))
        return Split(events, {"kind": "train"}).sequences(catalog)

    def leave_one_out(self) -> "Split":
        """Split: each user's last event is the test target, the one before it the validation target."""

        return leave_one_out(self)

    @checked
    def timestamp_split(self, valid_share: float = 0.1, test_share: float = 0.1) -> "Split":
        """Split at two points in time, the same for all users; raises UserError for a log without timestamps."""

        return timestamp_split(self, valid_share, test_share)

    @checked
    def to_parquet(self, path: str | Path) -> None:
        """Write the frame to a parquet file; raises UserError if it can't be written."""
        with written(path):
            self.frame.write_parquet(path)

    @classmethod
    @checked
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
        _logger.warning("%s: no column of times; the rows of each user count as in time order", source)
        del wanted["timestamp"]
    for ours, theirs in wanted.items():
        hint = "; if no column holds times, --data.columns.time null takes the rows as in time order"
        advice = {"timestamp": hint, "item_id": ITEM_NAMES}.get(ours, "")
        require_column(frame, theirs, source, f"--data.columns.{_FLAGS[ours]}", advice)
    return frame.select(pl.col(theirs).alias(ours) for ours, theirs in wanted.items())


def used_names(columns: dict[str, str | None]) -> set[str]:
    """The names in the table of the columns of the events, as for `select_columns`."""
    return {theirs for theirs in columns.values() if theirs is not None}


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
    """Row numbers sorted by user, part, time, and a hash of user, item and seed; without times, by user, part and row.

    Three sorts by one number each take a quarter of the time of one sort by several columns.
    """
    users = numbered(frame["user_id"])
    if "part" in frame.columns:
        users = users * len(PARTS) + frame["part"].to_numpy()
    if frame["timestamp"].null_count():
        return np.argsort(users, kind="stable")
    shuffled = np.argsort(frame.select(pl.struct("user_id", "item_id").hash(seed)).to_series(), kind="stable")
    moments, moment = np.unique(frame["timestamp"].to_numpy(), return_inverse=True)
    keys = users * len(moments) + moment  # below 3 E², so int64 suffices
    return shuffled[np.argsort(keys[shuffled], kind="stable")]


def _as_numbers(values: pl.Series, source: str) -> pl.Series:
    """The numbers as float64, null for a missing one (null, NaN, an empty text)."""
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object):
        raise UserError(f"{source}: {values.name} holds {values.dtype}; expected numbers")
    if values.dtype == pl.String:
        values = values.set(values.str.strip_chars() == "", None)
    numbers = values.cast(pl.Float64, strict=False)
    bad = (numbers.is_null() & values.is_not_null()).arg_true()
    if len(bad):
        raise RowsError(source, bad.to_list(), lambda row: f"{values.name} {values[row]!r}; expected a number")
    return numbers.fill_nan(None)


def _as_texts(values: pl.Series, source: str) -> pl.Series:
    """The texts, "" for a missing one."""
    try:
        return values.cast(pl.String).fill_null("")
    except pl.exceptions.PolarsError:
        raise UserError(f"{source}: {values.name} holds {values.dtype}; expected text") from None


def _as_parts(values: pl.Series, source: str) -> pl.Series:
    """The parts as uint8."""
    if not values.dtype.is_integer() or not values.is_in(range(len(PARTS))).all() or values.null_count():
        names = ", ".join(f"{number} ({name})" for number, name in enumerate(PARTS))
        raise UserError(f"{source}: {values.name} holds other values than {names}; write one of these numbers per row")
    return values.cast(pl.UInt8)


class Split:
    """A log whose frame has a `part` column (uint8: TRAIN, VALID, TEST), which does not decrease within a user.

    `protocol` describes the split: its kind, the number of events per part, the cut timestamps (microseconds since
    1970 UTC) if there are any, and the cold-start settings that `llmrec.data.prepare` applied.
    """

    MADE_BY: ClassVar[str] = "log.leave_one_out() or log.timestamp_split()"

    def __init__(self, frame: pl.DataFrame, protocol: dict[str, Any]) -> None:
        ids = {"user_id": (pl.String,), "item_id": (pl.String,)}
        check_columns(frame, ids | {"part": (pl.UInt8, pl.Int64)}, Split, self.MADE_BY)
        self.frame = frame
        self.protocol = protocol

    def __repr__(self) -> str:
        return f"Split({self.protocol['kind']}; {_events(self.frame)})"

    @checked
    def part(self, part: int) -> Interactions:
        """The events of one part: TRAIN, VALID or TEST."""
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

    @checked
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
        cases = self._validation(sequences, catalog)
        return cases.where(sequences.train_counts(len(catalog))[cases.targets] > 0)

    def calibration_examples(self, catalog: Catalog) -> "EvalExamples":
        """One case for each validation event with a history, for warm and cold items: to learn the fusion weights.

        The cold users of the protocol are left out.

        Raises:
            UserError: for an item that is not in the catalogue.
        """
        return self._validation(self.sequences(catalog), catalog)

    def _validation(self, sequences: "Sequences", catalog: Catalog) -> "EvalExamples":
        cases = replace(sequences.cases(VALID, every=True), item_ids=catalog.frame["item_id"])
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


def given_split(log: Interactions) -> Split:
    """The published split of a log whose frame has the column `part`.

    The events of a user are ordered by part first: the history of a test case is all training and validation events,
    also those that are later than the target, as in a random split. A warning counts the users with such events, and
    the users whose first event is a target, which is no case since it has no history.

    Raises:
        UserError: for an empty part.
    """
    events = _events(log.frame)
    if empty := [name for name, count in events.items() if not count]:
        raise UserError(f"--data.split given: no event of the {empty[0]} part is left; each part needs one")
    same_user = (pl.col("user_id") == pl.col("user_id").shift()).fill_null(False)
    if first := len(log.frame.filter(~same_user & (pl.col("part") != TRAIN))):
        _logger.warning(
            "--data.split given: %s users have no training event. Their first event is no validation or test case, "
            "since it has no history.",
            f"{first:,}",
        )
    users = log.frame.filter(same_user & (pl.col("timestamp") < pl.col("timestamp").shift()))["user_id"].n_unique()
    if users:
        _logger.warning(
            "--data.split given: for %s users, an event of a later part is before one of an earlier part. The parts "
            "stay as published, so the history of a target can have events after it.",
            f"{users:,}",
        )
    return Split(log.frame, {"kind": "given", "events": events})


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
    if not (min(valid_share, test_share) > 0 and valid_share + test_share < 1):  # also refuses NaN
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
            f"--data.split timestamp: --data.valid_share {valid_share} and --data.test_share {test_share} leave the "
            f"{empty[0]} part empty; change them, or use --data.split leave-one-out"
        )
    return Split(frame, {"kind": "timestamp", "cuts": [first, second], "events": events})


def _events(frame: pl.DataFrame) -> dict[str, int]:
    counts = np.bincount(frame["part"].to_numpy(), minlength=len(PARTS))
    return dict(zip(PARTS, counts.tolist(), strict=True))
