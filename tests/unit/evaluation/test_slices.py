"""Slices of a log small enough to sort by hand."""

import numpy as np
import polars as pl
import pytest

from llmrec.data import Catalog, Interactions
from llmrec.data.sequences import TEST, TRAIN, VALID, EvalExamples, Sequences
from llmrec.data.times import DAY
from llmrec.evaluation.protocol import binned, make_slices, target_ages


def log(rows, times=None):
    """Sequences of users' (item, part) events."""
    events = [event for row in rows for event in row]
    return Sequences(
        users=[str(user) for user in range(len(rows))],
        offsets=np.cumsum([0, *map(len, rows)]),
        items=np.array([item for item, _ in events], np.int32),
        parts=np.array([part for _, part in events], np.uint8),
        times=None if times is None else np.array(times, np.int64),
    )


# Item 0 has 3 training events, 1 has one, 2 and 3 have none; user 2 is unknown to training.
ROWS = [
    [(0, TRAIN), (0, TRAIN), (1, TRAIN), (0, TEST)],
    [(0, TRAIN), (2, VALID), (1, TEST)],
    [(2, VALID), (3, TEST)],
]


def users(slices):
    return {name: np.flatnonzero(mask).tolist() for name, mask in slices.items()}


def test_slices_by_count_history_and_user():
    sequences = log(ROWS)
    assert users(make_slices(sequences.cases(TEST), sequences, 4)) == {
        "all": [0, 1, 2],
        "warm": [0, 1],
        "cold": [2],
        "count 0": [2],
        "count 1-4": [0, 1],
        "history 1-2": [1, 2],
        "history 3-4": [0],
        "warm-users": [0, 1],
        "cold-users": [2],
    }


def test_slices_by_age():
    # Item 0 is first seen on day 1 and asked for on day 32; item 1 on 40 and 220; item 3 on the very day.
    days = [1, 2, 40, 32, 3, 4, 221, 90, 90]
    sequences = log(ROWS, np.array(days) * DAY + 7)
    cases = sequences.cases(TEST)
    assert target_ages(cases, sequences, sequences.times).tolist() == [31, 181, 0]
    slices = users(make_slices(cases, sequences, 4))
    assert [slices[f"age {bin}"] for bin in ("0-30 days", "31-180 days", "181+ days")] == [[2], [0], [1]]


def test_the_first_event_may_be_another_users():
    sequences = log([[(0, TRAIN), (1, TEST)], [(1, TRAIN), (0, TEST)]], np.array([5, 6, 1, 9]) * DAY)
    assert target_ages(sequences.cases(TEST), sequences, sequences.times).tolist() == [5, 4]


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_ages_are_in_days_whatever_the_unit_of_the_source(unit):
    seconds = np.array([0, 1, 3.5, 0, 1, 50]) * 86_400 + 1_700_000_000
    rows = {"user_id": list("uuuvvv"), "item_id": list("abacdc"), "timestamp": seconds.astype(np.int64) * unit}
    split = Interactions.from_frame(pl.DataFrame(rows)).leave_one_out()
    sequences = split.sequences(Catalog.from_frame(pl.DataFrame({"item_id": list("abcd")})))
    assert target_ages(sequences.cases(TEST), sequences, sequences.times).tolist() == [3, 50]


def test_ages_of_some_of_the_cases():
    sequences = log([[(0, TRAIN), (0, TEST)]] * 3, np.array([0, 1, 0, 2, 0, 3]) * DAY)
    some = sequences.cases(TEST).where(np.array([False, True, True]))
    assert target_ages(some, sequences, sequences.times).tolist() == [2, 3]


def test_bins_do_not_overlap_and_leave_nothing_out():
    slices = binned(np.arange(12), (0, 1, 5, 10), "n", " x")
    assert {name: np.flatnonzero(mask).tolist() for name, mask in slices.items()} == {
        "n 0 x": [0],
        "n 1-4 x": [1, 2, 3, 4],
        "n 5-9 x": [5, 6, 7, 8, 9],
        "n 10+ x": [10, 11],
    }


def test_a_slice_of_all_or_none_is_left_out():
    sequences = log([[(0, TRAIN), (0, TEST)], [(0, TRAIN), (0, TEST)]])
    assert set(make_slices(sequences.cases(TEST), sequences, 1)) == {"all", "warm", "cold"}


def test_no_cases_have_no_ages():
    sequences = log([[(0, TRAIN)]], [5])
    nobody = EvalExamples(np.empty(0, np.int32), [], np.empty(0, np.int32))
    assert target_ages(nobody, sequences, sequences.times).tolist() == []
