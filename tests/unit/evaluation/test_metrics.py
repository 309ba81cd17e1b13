"""Metrics against hand-computed values and brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.collaborative.base import ranks_from_scores
from llmrec.evaluation.metrics import interval, per_user, ranks_from_lists, resampled_means, summarise

SCORES = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0])  # few values, so that ties are common


def test_metrics_by_hand():
    ranks = np.array([1.0, 3.0, 11.0, np.inf])
    summary = summarise(ranks, [1, 5, 10, 20], bootstrap=10, seed=0)
    assert summary["users"] == 4
    assert summary["recall@1"] == 0.25
    assert summary["recall@10"] == 0.5
    assert summary["recall@20"] == 0.75
    assert summary["ndcg@5"] == pytest.approx((1 + 1 / 2) / 4)  # 1 / log2(3 + 1)
    assert summary["ndcg@20"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(12)) / 4)
    assert summary["mrr@10"] == pytest.approx((1 + 1 / 3) / 4)
    assert summary["mrr@20"] == pytest.approx((1 + 1 / 3 + 1 / 11) / 4)


def test_an_unranked_target_scores_nothing_at_any_cut_off():
    assert all(value == 0 for value in per_user(np.array([np.inf]), 10**9).values())


def test_no_users_is_an_error():
    with pytest.raises(ValueError, match="no users"):
        summarise(np.empty(0), [10], bootstrap=10, seed=0)


def test_ties_count_against_the_target():
    scores = np.array([[1.0, 1.0, 0.0, 1.0]])
    assert ranks_from_scores(scores, np.array([0])) == [3]
    assert ranks_from_scores(np.zeros((1, 4)), np.array([2])) == [4]


def test_seen_items_leave_the_ranking_but_a_seen_target_stays():
    scores = np.array([[4.0, 3.0, 2.0, 1.0]])
    assert ranks_from_scores(scores, np.array([2])) == [3]
    assert ranks_from_scores(scores, np.array([2]), [np.array([0, 0, 3])]) == [2]
    assert ranks_from_scores(scores, np.array([2]), [np.array([1, 2])]) == [2]


def test_a_target_without_a_finite_score_is_not_ranked():
    assert ranks_from_scores(np.array([[1.0, -np.inf]]), np.array([1])) == [np.inf]


@pytest.mark.parametrize("rank", [ranks_from_scores, lambda s, t: ranks_from_lists(np.array([[0, 1]]), s, t)])
def test_nan_scores_are_refused(rank):
    with pytest.raises(ValueError, match="NaN"):
        rank(np.array([[1.0, np.nan]]), np.array([0]))


def test_mismatched_shapes_are_refused():
    with pytest.raises(ValueError, match="2 rows of scores for 1 targets"):
        ranks_from_scores(np.zeros((2, 3)), np.array([0]))
    with pytest.raises(ValueError, match="do not match"):
        ranks_from_lists(np.zeros((1, 3), int), np.zeros((1, 2)), np.array([0]))


@given(st.data())
def test_ranks_from_scores_equals_brute_force(data):
    users, items = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 7))
    rows = st.lists(SCORES, min_size=items, max_size=items)
    scores = np.array(data.draw(st.lists(rows, min_size=users, max_size=users)))
    row = st.integers(0, items - 1)
    targets = data.draw(st.lists(row, min_size=users, max_size=users))
    seen = data.draw(st.lists(st.lists(row), min_size=users, max_size=users))
    expected = []
    for user, target in enumerate(targets):
        others = [i for i in range(items) if i != target and i not in seen[user]]
        rank = 1 + sum(scores[user, i] >= scores[user, target] for i in others)
        expected.append(math.inf if scores[user, target] == -math.inf else rank)
    got = ranks_from_scores(scores, np.array(targets), [np.array(s, np.int32) for s in seen])
    assert got.tolist() == expected


@given(st.data())
def test_ranks_from_lists_equals_brute_force(data):
    items = data.draw(st.lists(st.integers(0, 9), unique=True, max_size=6))
    scores = data.draw(st.lists(SCORES, min_size=len(items), max_size=len(items)))
    padding = data.draw(st.integers(0, 3))
    target = data.draw(st.integers(0, 9))
    if target in items:
        own = scores[items.index(target)]
        expected = 1 + sum(s >= own for i, s in zip(items, scores, strict=True) if i != target)
    else:
        expected = math.inf
    padded = np.array([items + [-1] * padding], dtype=np.int64)
    got = ranks_from_lists(padded, np.array([scores + [np.nan] * padding], dtype=float), np.array([target]))
    assert got.tolist() == [expected]


def test_the_interval_matches_the_normal_one_and_its_seed():
    values = (np.arange(10_000) < 2_000).astype(float)
    low, high = interval(values, 2000, seed=0)
    spread = 1.96 * math.sqrt(0.2 * 0.8 / 10_000)
    assert low == pytest.approx(0.2 - spread, abs=0.001)
    assert high == pytest.approx(0.2 + spread, abs=0.001)
    assert interval(values, 2000, seed=0) == (low, high)
    assert interval(values, 2000, seed=1) != (low, high)


def test_the_interval_of_a_constant_is_a_point():
    assert interval(np.full(50, 0.25), 100, seed=0) == (0.25, 0.25)


def test_targets_of_one_user_are_drawn_together():
    """Four users of eight targets each, all hits or all misses: only 5 means can be drawn, and the interval is wide."""
    users = np.repeat([3, 5, 8, 9], 8)
    ranks = np.where(np.isin(users, [3, 8]), 1.0, np.inf)
    summary = summarise(ranks, [10], bootstrap=2000, seed=0, users=users)
    assert (summary["users"], summary["targets"], summary["recall@10"]) == (4, 32, 0.5)
    assert summary["recall@10_ci"] == [0.0, 1.0], "as likely as 1 in 16 each"
    low, high = summarise(ranks, [10], bootstrap=2000, seed=0)["recall@10_ci"]
    assert 0.25 < low < high < 0.75, "32 users with one target each"


def test_the_interval_over_users_weighs_them_by_their_targets():
    users, values = np.array([0, 0, 0, 1]), np.array([1.0, 1.0, 1.0, 0.0])
    assert interval(values, 1000, 0, users) == (0.0, 1.0)
    assert set(resampled_means(values, 1000, 0, users)) == {0.0, 0.75, 1.0}
    alone = (np.arange(400) % 5 == 0).astype(float)
    twice = interval(np.repeat(alone, 2), 2000, 0, np.repeat(np.arange(400), 2))
    np.testing.assert_allclose(twice, interval(alone, 2000, seed=0), atol=0.01)


@pytest.mark.parametrize("users", [None, np.arange(60) // 3])
def test_resampling_in_blocks_draws_the_same(monkeypatch, users):
    values = np.random.default_rng(0).random(60)
    whole = resampled_means(values, 50, 1, users)
    monkeypatch.setattr("llmrec.evaluation.metrics.DRAWN_AT_ONCE", 7 * 60)
    np.testing.assert_allclose(resampled_means(values, 50, 1, users), whole, rtol=1e-12)


def test_one_target_each_needs_no_users():
    ranks = np.array([1.0, 4.0, np.inf])
    assert summarise(ranks, [10], 50, 0, users=np.array([7, 2, 5])) == summarise(ranks, [10], 50, 0)
