"""Windows of sequences that are known: joined, they are the sequences again."""

import random

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data.readers.windows import join_windows
from llmrec.errors import UserError

SCHEMA = {"user_id": pl.String, "history": pl.List(pl.String), "item_id": pl.String, "part": pl.UInt8}


def join(rows):
    return join_windows(pl.DataFrame(rows, schema=SCHEMA, orient="row"), "log.csv").rows()


def windows(user, items, parts, longest):
    """A row for each event but the first."""
    return [(user, items[max(0, at - longest) : at], items[at], parts[at]) for at in range(1, len(items))]


def test_an_item_of_histories_only_is_for_training():
    rows = windows("u", list("abcd"), [0, 0, 1, 2], 10)
    assert join(rows) == [("u", "a", 0), ("u", "b", 0), ("u", "c", 1), ("u", "d", 2)]
    assert join([("u", ["a", "b"], "c", 2)]) == [("u", "a", 0), ("u", "b", 0), ("u", "c", 2)]


def test_a_history_without_the_validation_target():
    rows = [("u", ["a"], "b", 0), ("u", ["a", "b"], "c", 1), ("u", ["a", "b"], "d", 2)]
    assert join(rows) == [("u", "a", 0), ("u", "b", 0), ("u", "c", 1), ("u", "d", 2)]


def test_a_row_that_stands_twice_adds_nothing():
    rows = [("u", ["a"], "b", 0), ("u", ["a"], "b", 0), ("u", ["a", "b"], "c", 0), ("u", ["a"], "b", 0)]
    assert [item for _, item, _ in join(rows)] == ["a", "b", "c"]


def test_windows_that_do_not_meet_are_said(caplog):
    rows = [("u", ["a"], "b", 0), ("u", ["c"], "d", 0), ("v", ["x"], "y", 0)]
    assert [item for _, item, _ in join(rows)] == ["a", "b", "c", "d", "x", "y"]
    assert "log.csv: 1 windows do not meet the ones before" in caplog.text


def test_windows_may_skip_events(caplog):
    rows = [("u", ["a", "b"], "c", 0), ("u", ["c", "d"], "e", 1)]
    assert join(rows) == [("u", "a", 0), ("u", "b", 0), ("u", "c", 0), ("u", "d", 0), ("u", "e", 1)]
    assert not caplog.records


def test_ids_have_one_form_in_histories_and_items():
    rows = [("1.0", ["1"], "2.0", 0), ("1", ["1.0", "2"], "3", 0)]
    assert join(rows) == [("1", "1", 0), ("1", "2", 0), ("1", "3", 0)]


def test_missing_ids_and_histories():
    assert [item for _, item, _ in join([("u", [], "a", 0), ("u", None, "b", 1)])] == ["a", "b"]
    with pytest.raises(UserError, match="row 2 has no item_id"):
        join([("u", ["a"], "b", 0), ("u", ["a"], None, 0)])


@given(
    st.lists(st.lists(st.sampled_from("abcdefghijkl"), min_size=2, max_size=12, unique=True), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(0, 2**31),
)
def test_rows_in_any_order_give_the_sequences(sequences, longest, seed):
    expected, rows = [], []
    for number, items in enumerate(sequences):
        parts = [0] * len(items)
        if len(items) > 3:
            parts[-2:] = [1, 2]
        user = f"u{number}"
        expected += [(user, item, part) for item, part in zip(items, parts, strict=True)]
        rows += windows(user, items, parts, longest)
    random.Random(seed).shuffle(rows)
    assert sorted(join(rows), key=lambda row: row[0]) == expected


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=15), st.integers(3, 6))
def test_rows_in_order_keep_repeats(items, longest):
    assert [item for _, item, _ in join(windows("u", items, [0] * len(items), longest))] == items
