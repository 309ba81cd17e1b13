"""What lists are like beside being right, by hand and against slow loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.collaborative.lists import beyond_accuracy, gini


def test_beyond_accuracy_by_hand():
    items = np.array([[0, 1, 3], [0, -1, -1], [-1, -1, -1]])
    found = beyond_accuracy(items, np.array([7, 3, 0, 0]), n_users=7, k=2)
    assert list(found) == ["coverage@2", "popularity@2", "novelty@2", "gini@2"]
    assert found["coverage@2"] == 0.5
    assert found["popularity@2"] == pytest.approx((0.5 + 0.7) / 2), "the empty list does not count"
    assert found["novelty@2"] == pytest.approx((0.5 + 0) / 2), "all know item 0, half of them item 1"
    assert found["gini@2"] == pytest.approx((-3 * 0 - 1 * 0 + 1 * 1 + 3 * 2) / (4 * 3))


def test_a_cold_item_is_the_most_novel_and_one_bought_again_and_again_not_below_none():
    novelty = [beyond_accuracy(np.array([[row]]), np.array([0, 1, 40]), 15, 1)["novelty@1"] for row in range(3)]
    assert novelty == [4.0, 3.0, 0.0]


@given(st.data())
def test_beyond_accuracy_equals_brute_force(data):
    n, width = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    lists = data.draw(
        st.lists(st.lists(st.integers(0, n - 1), unique=True, max_size=width), min_size=1, max_size=5).filter(any)
    )
    counts = data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n).filter(any))
    users, k = data.draw(st.integers(1, 12)), data.draw(st.integers(1, width))
    items = np.array([row + [-1] * (width - len(row)) for row in lists])
    top = [row[:k] for row in lists if row]
    exposure = [sum(item in row for row in top) for item in range(n)]
    popularity = [sum(counts[item] / sum(counts) for item in row) / len(row) for row in top]
    novelty = [sum(-math.log2(min(1, (counts[i] + 1) / (users + 1))) for i in row) / len(row) for row in top]
    gaps = sum(abs(one - other) for one in exposure for other in exposure) / n**2
    expected = {
        f"coverage@{k}": len({item for row in top for item in row}) / n,
        f"popularity@{k}": sum(popularity) / len(top),
        f"novelty@{k}": sum(novelty) / len(top),
        f"gini@{k}": gaps / (2 * sum(exposure) / n),
    }
    found = beyond_accuracy(items, np.array(counts), users, k)
    assert found == pytest.approx(expected, abs=1e-12)
    assert all(type(value) is float for value in found.values())


def test_gini_of_equal_and_of_single_items():
    assert gini(np.full(5, 3)) == 0
    assert gini(np.array([0, 0, 8, 0, 0])) == pytest.approx(1 - 1 / 5)


@pytest.mark.parametrize(
    ("items", "counts", "users", "k", "message"),
    [
        ([[0, 1]], [1, 1], 1, 3, "k 3"),
        ([[0, 1]], [1, 1], 1, 0, "k 0"),
        ([[0, 2]], [1, 1], 1, 2, "items 0 to 2"),
        ([[0, -2]], [1, 1], 1, 2, "items -2 to 0"),
        ([[0, 1]], [0, 0], 1, 2, "0 training events"),
        ([[0, 1]], [1, 1], 0, 2, "of 0 users"),
        ([[-1, -1]], [1, 1], 1, 2, "no list has an item"),
        (np.empty((0, 2), int), [1, 1], 1, 2, "no list has an item"),
    ],
)
def test_lists_that_say_nothing_are_refused(items, counts, users, k, message):
    with pytest.raises(ValueError, match=message):
        beyond_accuracy(np.array(items), np.array(counts), users, k)
