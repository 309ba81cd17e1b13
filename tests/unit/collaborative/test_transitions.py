"""Transitions against plain loops, and what smoothing over text neighbours knows of items without events."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.collaborative.counting import (
    DecayedMarkov,
    SmoothedMarkov,
    TransitionSettings,
    centred,
    count_transitions,
    text_neighbours,
)

ITEMS = 7
SETTINGS = TransitionSettings(window=3, decay=0.5, backward=0.25, shrinkage=2.0, recency=0.5, neighbours=2)


@given(st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=8), min_size=1, max_size=6))
def test_counts_are_those_of_a_loop(rows: list[list[int]]) -> None:
    expected = np.zeros((ITEMS, ITEMS))
    for row in rows:
        for at, item in enumerate(row):
            for step in range(1, 4):
                if at + step < len(row) and row[at + step] != item:
                    expected[item, row[at + step]] += 0.5 ** (step - 1)
                    expected[row[at + step], item] += 0.25 * 0.5 ** (step - 1)
    expected /= expected.sum(axis=1, keepdims=True) + 2.0
    found = count_transitions([np.array(row, np.int64) for row in rows], ITEMS, SETTINGS)
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-6)


def test_the_latest_item_counts_most() -> None:
    system = DecayedMarkov(SETTINGS).fit([np.array([0, 1]), np.array([2, 3])], ITEMS)
    (scores,) = system.scores([np.array([0, 2])])
    table = system.transitions.toarray()
    np.testing.assert_allclose(scores, 0.5 * table[0] + table[2] + 1e-6 * system.popularity, atol=1e-7)
    assert scores.argmax() == 3


def test_text_neighbours_are_the_nearest_and_the_item_itself() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 6))
    warm = np.arange(0, 30, 2)
    found = text_neighbours(centred(vectors, warm), 4, 4.0, warm).toarray()
    unit = vectors - vectors[warm].mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit[warm].T
    for row in range(30):
        best = np.argsort(-cosines[row])[:5]
        expected = np.zeros(30)
        expected[warm[best]] = np.maximum(cosines[row][best], 0) ** 4
        np.testing.assert_allclose(found[row], expected / expected.sum(), atol=1e-5)
    assert (found[warm, warm] > 0).all()
    np.testing.assert_array_equal(text_neighbours(centred(vectors, warm), 4, 4.0, warm, 21).toarray(), found[21:])


def test_smoothing_reaches_items_without_events() -> None:
    """Items 4 to 6 read like 0 to 2 and have no event; what follows 0 is 1, so 5 may follow 4, and 0."""
    base = np.eye(3)
    vectors = np.concatenate([base, np.zeros((1, 3)), base + 0.05])
    system = SmoothedMarkov(vectors, SETTINGS).fit([np.array([0, 1]), np.array([0, 1]), np.array([2, 0])], ITEMS)
    (seen, unseen) = system.scores([np.array([0]), np.array([4])])
    assert seen[5] > seen[6]
    assert unseen[1] > unseen[2]
    assert unseen[5] > unseen[6]
    assert not system.neighbours[:, 3:].nnz, "cold items are nobody's neighbours"
    around, counts = system.neighbours.toarray(), system.transitions.toarray()
    np.testing.assert_allclose(seen - 1e-6 * system.popularity, (around @ counts @ around.T)[0], atol=1e-6)


def test_vectors_of_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="3 text vectors for 7 items"):
        SmoothedMarkov(np.eye(3)).fit([np.array([0, 1])], ITEMS)
