"""Interactions as arrays: each user's items in time order, and the evaluation cases (history, target)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl

from llmrec.data.ids import difference, rows_of
from llmrec.errors import UserError

TRAIN, VALID, TEST = 0, 1, 2


PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class EvalExamples:
    """n evaluation cases: the history of a user, and the target (the item that the user takes next)."""

    MADE_BY: ClassVar[str] = "split.validation_examples or split.calibration_examples"

    users: np.ndarray
    """int32 [n], indices into `Sequences.users`"""
    histories: list[np.ndarray]
    """n arrays of catalogue rows, int32, oldest first, none empty"""
    targets: np.ndarray
    """int32 [n], catalogue rows"""
    item_ids: pl.Series | None = None
    """ids of the N items whose rows these are; None: not known"""

    def __len__(self) -> int:
        return len(self.targets)

    def sample(self, n: int, seed: int) -> "EvalExamples":
        """At most n random cases, drawn without replacement with `seed`; their order stays."""
        if n >= len(self):
            return self
        chosen = np.zeros(len(self), bool)
        chosen[np.random.default_rng(seed).choice(len(self), size=n, replace=False)] = True
        return self.where(chosen)

    def sample_warm(self, is_cold: np.ndarray, n: int, seed: int) -> "EvalExamples":
        """All cases with a cold target, and at most n random others; `is_cold`, bool [N], marks the cold items."""
        chosen = is_cold[self.targets]
        chosen[np.random.default_rng(seed).permutation(np.flatnonzero(~chosen))[:n]] = True
        return self.where(chosen)

    def where(self, chosen: np.ndarray) -> "EvalExamples":
        """The cases where the mask `chosen` (bool [n]) is true."""
        histories = [self.histories[row] for row in np.flatnonzero(chosen)]
        return EvalExamples(self.users[chosen], histories, self.targets[chosen], self.item_ids)

    def in_catalog(self, item_ids: pl.Series) -> "EvalExamples":
        """The same cases in the rows of another catalogue, which has these ids.

        Items that it lacks leave the histories. Cases whose target it lacks, or whose history would be empty, are left
        out. If the ids that the rows stand for are not known, the rows stay as they are.
        """
        own = self.item_ids
        if own is None or own.equals(item_ids.head(len(own))):  # new items come after all others
            return self
        rows = rows_of(item_ids, own.to_list()).astype(np.int32)
        targets, histories = rows[self.targets], [rows[history] for history in self.histories]
        kept = [history[history >= 0] for history in histories]
        told = np.array([len(history) > 0 for history in kept], bool)
        return EvalExamples(self.users, kept, targets, item_ids).where((targets >= 0) & told)

    def per_user_table(
        self, ranks: Mapping[str, np.ndarray], users: Sequence[str], items: Sequence[str]
    ) -> pl.DataFrame:
        """One row per case and system: `user_id`, `system`, `item_id` of the target, `rank` (null: not ranked).

        Args:
            ranks: system -> float64 [n], from 1 on, inf where the target is not ranked.
            users: ids of all U users.
            items: ids of the N items.
        """
        user_ids, targets = [users[user] for user in self.users], [items[item] for item in self.targets]
        tables = [
            pl.DataFrame(
                {
                    "user_id": user_ids,
                    "system": [name] * len(self),
                    "item_id": targets,
                    "rank": [int(rank) if np.isfinite(rank) else None for rank in column],
                },
                schema={"user_id": pl.String, "system": pl.String, "item_id": pl.String, "rank": pl.Int64},
            )
            for name, column in ranks.items()
        ]
        return pl.concat(tables)


@dataclass(frozen=True)
class Sequences:
    """The log of E events as arrays: the items of user u are `items[offsets[u]:offsets[u + 1]]`, in time order."""

    users: list[str]
    """U user ids"""
    offsets: np.ndarray
    """int64 [U + 1]"""
    items: np.ndarray
    """int32 [E], rows of the catalogue"""
    parts: np.ndarray
    """uint8 [E], TRAIN, VALID or TEST; not decreasing within a user"""
    times: np.ndarray | None = None
    """int64 [E], microseconds since 1970 UTC; None if only the order of the events is known"""

    def __len__(self) -> int:
        return len(self.users)

    def history(self, user: int, part: int) -> np.ndarray:
        """The items of user number `user` in the parts before `part`, int32, oldest first."""
        start, stop = self.offsets[user], self.offsets[user + 1]
        return self.items[start : start + np.searchsorted(self.parts[start:stop], part)]

    def train_sequences(self) -> list[np.ndarray]:
        """The training items of each user: U int32 arrays, oldest first; some may be empty."""
        return [self.history(user, VALID) for user in range(len(self))]

    def cases(self, part: int, every: bool = False) -> EvalExamples:
        """The evaluation cases of one part; each needs a history of at least one event.

        Args:
            part: TRAIN, VALID or TEST.
            every: False: one case per user. The target is the user's first event in `part`, and the history is all
                events of earlier parts. True: one case per event in `part`. The event is the target, and the history
                is all events of the user before it.

        Returns:
            The n cases, in the order of the log.
        """
        starts = np.repeat(self.offsets[:-1], np.diff(self.offsets))
        place = np.arange(len(self.items)) - starts
        chosen = (self.parts == part) & (place > 0)
        if not every:
            earlier = np.append(part, self.parts[:-1])  # part of the event before; the log's first event has none
            chosen &= earlier != part
        targets = np.flatnonzero(chosen)
        return EvalExamples(
            users=(np.searchsorted(self.offsets, targets, side="right") - 1).astype(np.int32),
            histories=[self.items[starts[target] : target] for target in targets],
            targets=self.items[targets],
        )

    def train_counts(self, n_items: int) -> np.ndarray:
        """int64 [N], the number of training events of each catalogue row; a cold item has 0."""
        return np.bincount(self.items[self.parts == TRAIN], minlength=n_items).astype(np.int64)


def first_target(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """The number of the first target of each of U users and, at the end, the number of all targets, int64 [U + 1].

    The targets of training are all training items but each user's first; they are numbered user after user.
    """
    return np.append(0, np.cumsum([max(len(sequence) - 1, 0) for sequence in sequences])).astype(np.int64)


def item_rows(events: pl.Series, item_ids: pl.Series) -> np.ndarray:
    """The row of each event's item in the catalogue.

    Args:
        events: E item ids, one per event.
        item_ids: N distinct item ids of the catalogue.

    Returns:
        int32 [E], positions in `item_ids`.

    Raises:
        UserError: for an event whose item is not in `item_ids`.
    """
    items = pl.DataFrame({"item_id": item_ids}).with_row_index("item")
    rows = pl.DataFrame({"item_id": events}).join(items, on="item_id", how="left", maintain_order="left")
    if rows["item"].null_count():
        unknown = rows.filter(pl.col("item").is_null())["item_id"]
        words = difference(unknown, item_ids)
        fix = f"the ids differ in {words}; write them in one form" if words else "add them"
        raise UserError(
            f"the log names {unknown.n_unique()} items that the catalogue lacks, such as {unknown[0]!r}; "
            f"{fix}, or drop these events with --data.unknown_items drop"
        )
    return rows["item"].to_numpy().astype(np.int32)
