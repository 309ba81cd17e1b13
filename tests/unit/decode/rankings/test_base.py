"""What the methods share: filters as masks, the best of a row, candidates without repetition, prefixes of items."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.decode.filters import Filter
from llmrec.decode.rankings.base import allowed, candidates, item_nodes, top
from llmrec.decode.search import NotNumbersError
from llmrec.index.trie import ItemTrie


def test_filters_as_masks():
    filters = [Filter(), Filter(np.array([1, 3])), Filter(None, np.array([0])), Filter(np.array([1, 3]), np.array([3]))]
    assert allowed(filters, 4, 5).astype(int).tolist() == [
        [1, 1, 1, 1, 1],
        [0, 1, 0, 1, 0],
        [0, 1, 1, 1, 1],
        [0, 1, 0, 0, 0],
    ]
    assert allowed(None, 2, 3).all()
    assert not allowed([Filter(np.empty(0, np.int64))], 1, 3).any()


SCORES = st.lists(st.one_of(st.just(-np.inf), st.integers(-5, 5).map(float)), min_size=1, max_size=12)


@given(SCORES, st.integers(0, 15), st.booleans())
def test_the_best_of_a_row(scores, k, named):
    row = np.array([scores], np.float32)
    items = 100 + np.arange(len(scores))[None] if named else None
    ranking = top(row, k, items)
    assert ranking.items.shape == ranking.scores.shape == (1, k)
    finite = sorted((score for score in scores if score > -np.inf), reverse=True)[:k]
    assert ranking.scores[0].tolist() == finite + [-np.inf] * (k - len(finite))
    found = ranking.items[0, : len(finite)] - (100 if named else 0)
    assert (ranking.items[0, len(finite) :] == -1).all()
    assert len(set(found.tolist())) == len(finite)
    assert row[0, found].tolist() == finite
    for one, other in pairwise(found):
        assert scores[one] > scores[other] or one < other


def test_scores_that_are_not_numbers_are_no_ranking():
    with pytest.raises(NotNumbersError, match="the ranking's scores are not numbers"):
        top(np.array([[0, np.nan, 1]], np.float32), 2)


@given(st.lists(st.lists(st.lists(st.integers(-1, 6), min_size=4, max_size=4), min_size=3, max_size=3), min_size=1))
def test_candidates_are_the_union(parts):
    arrays = [np.array(part) for part in parts]
    united = candidates(*arrays)
    for row in range(3):
        expected = sorted({item for part in parts for item in part[row] if item >= 0})
        assert united[row].tolist() == expected + [-1] * (united.shape[1] - len(expected))
    assert united.shape[1] == 0 or (united >= 0).any(axis=0).all(), "no column without an item"


def test_nodes_of_items_by_hand():
    codes = np.array([[1, 0], [0, 2], [1, 1], [0, 2], [0, 0]])
    trie = ItemTrie.build(codes, [2, 3])
    assert item_nodes(trie, 1).tolist() == [1, 0, 1, 0, 0]
    assert item_nodes(trie, 2).tolist() == [2, 1, 3, 1, 0]
    without = trie.without_items(np.array([1, 2]))
    assert item_nodes(without, 1).tolist() == [1, -1, -1, 0, 0]
