"""Quotas against a plain walk down the whole ranking."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decode.filters import Quota, diverse


@st.composite
def situations(draw):
    """Scores [N], who may come out, one to three quotas, k, and how many items one question brings."""
    items = draw(st.integers(1, 25))
    seed = draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    quotas = [
        Quota(rng.integers(-1, draw(st.integers(1, 5)), items), draw(st.integers(1, 4)))
        for _ in range(draw(st.integers(0, 3)))
    ]
    allowed = rng.random(items) < draw(st.sampled_from([0, 0.3, 1]))
    return rng.permutation(items).astype(np.float32), allowed, quotas, draw(st.integers(1, 30)), draw(st.integers(1, 6))


def ranking_of(scores: np.ndarray, piece: int):
    """A perfect ranker that gives `piece` items at a time, and the list of its answers' lengths."""
    asked: list[int] = []

    def ask(among):
        rows = np.argsort(-scores)
        rows = rows[among.normal().allows(rows)][:piece]
        asked.append(len(rows))
        return rows, scores[rows]

    return ask, asked


@settings(deadline=None)
@given(situations())
def test_equals_a_walk_down_the_ranking(situation):
    scores, allowed, quotas, k, piece = situation
    ask, _ = ranking_of(scores, piece)
    items, values = diverse(ask, allowed, k, quotas)
    expected: list[int] = []
    for item in np.argsort(-scores).tolist():
        groups = [(quota.groups[item], [quota.groups[other] for other in expected], quota.most) for quota in quotas]
        has_room = all(own < 0 or taken.count(own) < most for own, taken, most in groups)
        if allowed[item] and has_room and len(expected) < k:
            expected.append(item)
    assert items.tolist() == expected
    np.testing.assert_array_equal(values, scores[expected])


def test_a_group_that_fills_the_top_costs_one_more_question():
    """900 of 1000 items are of one brand and the best ones at that."""
    scores = -np.arange(1000, dtype=np.float32)
    groups = np.where(np.arange(1000) < 900, 0, 1 + np.arange(1000))
    ask, asked = ranking_of(scores, 10)
    items, _ = diverse(ask, np.ones(1000, bool), 10, [Quota(groups, 2)])
    assert items.tolist() == [0, 1, *range(900, 908)]
    assert asked == [10, 10]


def test_a_better_item_that_comes_later_is_put_in_its_place():
    """Beams are no perfect ranker."""
    pieces = iter([(np.array([3, 4]), np.array([-2.0, -3.0])), (np.array([5]), np.array([-1.0]))])
    items, scores = diverse(lambda among: next(pieces), np.ones(6, bool), 2, [Quota(np.zeros(6, int) - 1, 1)])
    assert items.tolist() == [3, 4]
    pieces = iter([(np.array([3, 4]), np.array([-2.0, -3.0])), (np.array([5]), np.array([-1.0]))])
    items, scores = diverse(lambda among: next(pieces), np.ones(6, bool), 2, [Quota(np.array([0, 0, 0, 7, 7, 1]), 1)])
    assert items.tolist() == [5, 3]
    assert scores.tolist() == [-1, -2]


def test_the_caller_keeps_what_was_allowed():
    allowed = np.ones(5, bool)
    ask, _ = ranking_of(np.arange(5, dtype=np.float32), 5)
    diverse(ask, allowed, 3, [])
    assert allowed.all()
