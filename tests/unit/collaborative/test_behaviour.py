import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.collaborative.behaviour import Behaviour
from llmrec.data import Interactions
from llmrec.errors import UserError

ITEMS = ["a", "b", "c", "d", "e"]
logs = st.lists(st.lists(st.sampled_from(ITEMS), max_size=9), max_size=6)


def log_of(sequences: list[list[str]]) -> Interactions:
    events = [(f"u{user}", item) for user, sequence in enumerate(sequences) for item in sequence]
    schema = {"user_id": pl.String, "item_id": pl.String}
    return Interactions.from_frame(pl.DataFrame(events, schema=schema, orient="row"))


@given(sequences=logs, window=st.integers(1, 10))
def test_counts_and_pairs_as_loops_find_them(sequences, window):
    counts, pairs = np.zeros(5, int), np.zeros((5, 5), int)
    for sequence in sequences:
        rows = [ITEMS.index(item) for item in sequence]
        for place, row in enumerate(rows):
            counts[row] += 1
            for other in rows[place + 1 : place + 1 + window]:
                if row != other:
                    pairs[row, other] += 1
                    pairs[other, row] += 1
    behaviour = Behaviour.from_log(log_of(sequences), ITEMS, window)
    assert behaviour.counts.dtype == behaviour.pairs.dtype == np.int64
    np.testing.assert_array_equal(behaviour.counts, counts)
    np.testing.assert_array_equal(behaviour.pairs.toarray(), pairs)
    assert behaviour.pairs.nnz == np.count_nonzero(pairs)


def test_rows_follow_the_item_ids():
    log = log_of([["a", "b", "b"], ["c"]])
    behaviour = Behaviour.from_log(log, ["c", "x", "b", "a"])
    assert behaviour.counts.tolist() == [1, 0, 2, 1]
    assert behaviour.pairs.toarray().tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2], [0, 0, 2, 0]]


def test_items_of_two_users_do_not_meet():
    behaviour = Behaviour.from_log(log_of([["a"], ["b"]]), ["a", "b"])
    assert behaviour.counts.tolist() == [1, 1]
    assert behaviour.pairs.nnz == 0


def test_an_unknown_item_is_named():
    with pytest.raises(UserError, match="names 2 items that the catalogue lacks, such as 'b'"):
        Behaviour.from_log(log_of([["a", "b", "c", "b"]]), ["a"])
