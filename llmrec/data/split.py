"""Training, validation and test parts of a log, and the log as arrays for everything that trains or ranks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from llmrec.data.catalog import Catalog
from llmrec.data.interactions import Interactions
from llmrec.errors import UserError

TRAIN, VALID, TEST = 0, 1, 2
PARTS = ("train", "valid", "test")


class Split:
    """A log whose frame has a `part` column (uint8: TRAIN, VALID, TEST), not decreasing along a user's rows.

    `protocol` says how it was made: kind, events per part, the cut timestamps where there are any, and what
    `llmrec.data.cold` made of it.
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

    def loss_cases(self, catalog: Catalog) -> "Cases":
        """Validation cases that may tell a training when to stop: those of `calibration_cases` with a trained target.

        Raises:
            UserError: for an item that the catalogue lacks.
        """
        sequences = self.sequences(catalog)
        cases = self._validation(sequences)
        return cases.where(sequences.train_counts(len(catalog))[cases.targets] > 0)

    def calibration_cases(self, catalog: Catalog) -> "Cases":
        """Every validation event after another, cold items' too, to weigh rankings on; none of users set apart as cold.

        Raises:
            UserError: for an item that the catalogue lacks.
        """
        return self._validation(self.sequences(catalog))

    def _validation(self, sequences: "Sequences") -> "Cases":
        cases = sequences.cases(VALID, every=True)
        if not self.protocol.get("cold_users"):
            return cases
        return cases.where(sequences.parts[sequences.offsets[cases.users]] == TRAIN)

    def with_frame(self, frame: pl.DataFrame, **protocol: Any) -> "Split":
        """The split of other events, with their counts and `protocol` in its protocol."""
        return Split(frame, {**self.protocol, **protocol, "events": _events(frame)})


@dataclass(frozen=True)
class Cases:
    """n questions with known answers: what does this user take next, after this history?"""

    users: np.ndarray
    """int32 [n], rows of `Sequences.users`"""
    histories: list[np.ndarray]
    """n arrays of catalogue rows, int32, oldest first, none empty"""
    targets: np.ndarray
    """int32 [n], catalogue rows"""

    def __len__(self) -> int:
        return len(self.targets)

    def sample(self, n: int, seed: int) -> "Cases":
        """At most n of the cases, drawn without replacement by `seed`, in their old order."""
        if n >= len(self):
            return self
        chosen = np.zeros(len(self), bool)
        chosen[np.random.default_rng(seed).choice(len(self), size=n, replace=False)] = True
        return self.where(chosen)

    def where(self, chosen: np.ndarray) -> "Cases":
        """The cases of a mask (bool [n])."""
        histories = [self.histories[row] for row in np.flatnonzero(chosen)]
        return Cases(self.users[chosen], histories, self.targets[chosen])


@dataclass(frozen=True)
class Sequences:
    """The log as arrays: user u's events are `items[offsets[u]:offsets[u + 1]]` in time order."""

    users: list[str]
    """U user ids"""
    offsets: np.ndarray
    """int64 [U + 1]"""
    items: np.ndarray
    """int32 [E], rows of the catalogue"""
    parts: np.ndarray
    """uint8 [E], not decreasing within a user"""
    times: np.ndarray | None = None
    """int64 [E], seconds or milliseconds as the log has them; None where only the order is known"""

    def __len__(self) -> int:
        return len(self.users)

    def history(self, user: int, part: int) -> np.ndarray:
        """Row `user`'s items of the parts before `part`, int32, oldest first."""
        start, stop = self.offsets[user], self.offsets[user + 1]
        return self.items[start : start + np.searchsorted(self.parts[start:stop], part)]

    def train_sequences(self) -> list[np.ndarray]:
        """U arrays of the users' training items, some perhaps empty."""
        return [self.history(user, VALID) for user in range(len(self))]

    def cases(self, part: int, every: bool = False) -> Cases:
        """One case for each user with an event in `part` and one before it, or one for each such event.

        The target is the user's first event in `part`, and the history is all that came in earlier parts; or with
        `every` each event is a target, and the history is all that came before it.
        """
        starts = np.repeat(self.offsets[:-1], np.diff(self.offsets))
        place = np.arange(len(self.items)) - starts
        chosen = (self.parts == part) & (place > 0)
        if not every:
            earlier = np.append(part, self.parts[:-1])  # of the event before; the log's first has none
            chosen &= earlier != part
        targets = np.flatnonzero(chosen)
        return Cases(
            users=(np.searchsorted(self.offsets, targets, side="right") - 1).astype(np.int32),
            histories=[self.items[starts[target] : target] for target in targets],
            targets=self.items[targets],
        )

    def train_counts(self, n_items: int) -> np.ndarray:
        """int64 [N], training events of each catalogue row; 0 marks a cold item."""
        return np.bincount(self.items[self.parts == TRAIN], minlength=n_items).astype(np.int64)


def item_rows(events: pl.Series, item_ids: pl.Series) -> np.ndarray:
    """int32 [E], the place of each of the log's `events` (item ids) among the distinct `item_ids`.

    Raises:
        UserError: for an item that is not among them.
    """
    items = pl.DataFrame({"item_id": item_ids}).with_row_index("item")
    rows = pl.DataFrame({"item_id": events}).join(items, on="item_id", how="left", maintain_order="left")
    if rows["item"].null_count():
        unknown = rows.filter(pl.col("item").is_null())["item_id"]
        raise UserError(
            f"the log names {unknown.n_unique()} items that the catalogue lacks, such as {unknown[0]!r}; "
            "prepare the data with --data.unknown_items drop"
        )
    return rows["item"].to_numpy().astype(np.int32)


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
