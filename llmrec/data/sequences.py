"""Interactions as arrays: each user's items in time order, and the cases that a ranking is asked."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from llmrec.errors import UserError

TRAIN, VALID, TEST = 0, 1, 2


PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class EvalExamples:
    """n questions with known answers: what does this user take next, after this history?"""

    users: np.ndarray
    """int32 [n], rows of `Sequences.users`"""
    histories: list[np.ndarray]
    """n arrays of catalogue rows, int32, oldest first, none empty"""
    targets: np.ndarray
    """int32 [n], catalogue rows"""

    def __len__(self) -> int:
        return len(self.targets)

    def sample(self, n: int, seed: int) -> "EvalExamples":
        """At most n of the cases, drawn without replacement by `seed`, in their old order."""
        if n >= len(self):
            return self
        chosen = np.zeros(len(self), bool)
        chosen[np.random.default_rng(seed).choice(len(self), size=n, replace=False)] = True
        return self.where(chosen)

    def where(self, chosen: np.ndarray) -> "EvalExamples":
        """The cases of a mask (bool [n])."""
        histories = [self.histories[row] for row in np.flatnonzero(chosen)]
        return EvalExamples(self.users[chosen], histories, self.targets[chosen])


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

    def cases(self, part: int, every: bool = False) -> EvalExamples:
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
        return EvalExamples(
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
