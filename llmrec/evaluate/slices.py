"""The users that a figure is a mean over: everyone, those with a warm or a cold target, and finer slices.

A slice is a mask over the cases: bool [n].
"""

from collections.abc import Sequence

import numpy as np

from llmrec.data.split import TRAIN, Cases, Sequences
from llmrec.evaluate.protocol import warm_cold_slices

Slices = dict[str, np.ndarray]

MAIN = ("all", "warm", "cold")
"""The slices of the main tables."""
COUNTS = (0, 1, 5, 10, 50)
HISTORIES = (1, 3, 5, 10, 20)
AGES = (0, 31, 181)
"""The least value of each bin; the last is open."""
MILLISECONDS_FROM = 10**11
"""As seconds, a time thousands of years ahead; as milliseconds, the year 1973."""


def make_slices(cases: Cases, sequences: Sequences, n_items: int) -> Slices:
    """`all`, `warm`, `cold`, and those finer slices that hold some of the n cases but not all.

    These go by the target's training events (`count 1-4`) and its days in the log (`age 0-30 days`), the length of the
    history (`history 1-2`), and whether the user has training events (`warm-users`, `cold-users`).

    Args:
        cases: of `sequences`.
        sequences: the whole log.
        n_items: of the catalogue.
    """
    counts = sequences.train_counts(n_items)
    warm_users = sequences.parts[sequences.offsets[cases.users]] == TRAIN
    finer = binned(counts[cases.targets], COUNTS, "count")
    finer |= binned(np.array([len(history) for history in cases.histories]), HISTORIES, "history")
    if sequences.times is not None:
        finer |= binned(target_ages(cases, sequences, sequences.times), AGES, "age", " days")
    finer |= {"warm-users": warm_users, "cold-users": ~warm_users}
    return warm_cold_slices(cases, counts) | {
        name: mask for name, mask in finer.items() if mask.any() and not mask.all()
    }


def binned(values: np.ndarray, starts: Sequence[int], name: str, unit: str = "") -> Slices:
    """A slice for each bin of whole numbers: `name 1-4`, `name 5` where a bin has one number, `name 10+` for the last.

    Args:
        values: int [n], none below the first start.
        starts: the least number of each bin.
        name: before the numbers.
        unit: behind them.
    """
    slices = {}
    for low, following in zip(starts, [*starts[1:], None], strict=True):
        label = f"{low}+" if following is None else f"{low}" if following == low + 1 else f"{low}-{following - 1}"
        slices[f"{name} {label}{unit}"] = (values >= low) & (values < following if following is not None else True)
    return slices


def target_ages(cases: Cases, sequences: Sequences, times: np.ndarray) -> np.ndarray:
    """Whole days from an item's first event that the split left in the log to the event that asks for it, int64 [n].

    Args:
        cases: of `sequences`.
        sequences: E events.
        times: int64 [E], seconds, or milliseconds where the latest is too far ahead for seconds.
    """
    first = np.full(sequences.items.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, sequences.items, times)
    # A case's target comes right after its history.
    events = sequences.offsets[cases.users] + np.array([len(history) for history in cases.histories], dtype=np.int64)
    day = 86_400 * (1000 if times.max(initial=0) >= MILLISECONDS_FROM else 1)
    return (times[events] - first[cases.targets]) // day
