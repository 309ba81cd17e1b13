"""Neighbours by text where the cosine can be told by looking."""

import numpy as np
import pytest
from tolerances import SUMS

from llmrec.collaborative.counting import TEXT_RECENCY as RECENCY
from llmrec.collaborative.counting import TextKNN
from llmrec.data.sequences import EvalExamples

# Items 0 to 2 point one way, 3 and 4 another; lengths must not count. Only items 0 and 3 are ever taken.
VECTORS = np.array([[1, 0, 0], [9, 1, 0], [1, 1, 0], [0, 0, 1], [0, 1, 5]], np.float32)
TRAIN = [np.array([0, 3], np.int32)]


def system():
    return TextKNN(VECTORS).fit(TRAIN, 5)


def rows(*histories):
    return [np.array(history, np.int32) for history in histories]


def test_scores_are_cosines():
    (scores,) = system().scores(rows([0]))
    assert scores == pytest.approx([1, 9 / 82**0.5, 1 / 2**0.5, 0, 0], abs=SUMS)
    assert scores.dtype == np.float32


def test_recent_items_count_more():
    (scores,) = system().scores(rows([3, 3, 0]))
    alone = [system().scores(rows([item]))[0] for item in (3, 0)]
    assert scores == pytest.approx(alone[1] + (RECENCY + RECENCY**2) * alone[0], abs=SUMS)


def test_it_finds_planted_neighbours_that_nobody_took():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 16))
    kinds = np.repeat(np.arange(6), 10)
    vectors = centres[kinds] + 0.1 * rng.normal(size=(60, 16))
    cold = np.flatnonzero(np.arange(60) % 10 == 9)
    warm = np.setdiff1d(np.arange(60), cold)
    cases = EvalExamples(np.arange(6), rows(*(warm[kinds[warm] == kind][:4] for kind in range(6))), cold)
    found = TextKNN(vectors).fit([warm], 60)
    assert found.ranks(cases, filter_seen=True).max() <= 6  # the kind has ten items, of which four are seen
    assert found.ranks(cases, filter_seen=True, among=cold).tolist() == [1] * 6


def test_twins_count_against_the_system():
    twins = TextKNN(np.ones((4, 2))).fit(TRAIN, 4)
    cases = EvalExamples(np.array([0]), rows([0]), np.array([2]))
    assert twins.ranks(cases, filter_seen=True).tolist() == [3]


def test_an_item_with_an_empty_vector_is_like_nothing():
    (scores,) = TextKNN(np.array([[1, 0], [0, 0]])).fit(rows([0]), 2).scores(rows([0]))
    assert scores.tolist() == [1, 0]


def test_vectors_of_other_items_are_refused():
    with pytest.raises(ValueError, match="5 text vectors for 6 items"):
        TextKNN(VECTORS).fit(TRAIN, 6)
