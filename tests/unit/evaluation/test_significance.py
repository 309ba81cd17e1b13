"""Paired differences against every possible resample, Holm's correction against its definition."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llmrec.errors import UserError
from llmrec.evaluation.significance import Difference, compare_with_best, holm, paired_difference

VALUES = st.sampled_from([0.0, 1 / math.log2(3), 0.5, 1 / math.log2(5), 1.0])  # few values, so that ties are common
PROBABILITIES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.02, 0.5, 1.0]))


def all_resamples(gains: np.ndarray, users: np.ndarray) -> np.ndarray:
    """The mean of each of the U ** U equally likely resamples of U users, by hand."""
    of = [gains[users == user] for user in sorted(set(users.tolist()))]
    draws = itertools.product(of, repeat=len(of))
    return np.array([math.fsum(np.concatenate(draw)) / sum(map(len, draw)) for draw in draws])


@settings(max_examples=40)
@given(st.data())
def test_the_difference_matches_all_resamples(data):
    users = np.array(data.draw(st.lists(st.sampled_from([9, 2, 5, 7]), min_size=1, max_size=7)))
    a, b = (np.array(data.draw(st.lists(VALUES, min_size=len(users), max_size=len(users)))) for _ in "ab")
    found = paired_difference(a, b, users, resamples=20_000, seed=data.draw(st.integers(0, 99)))
    means = all_resamples(a - b, users)
    assert found.mean == pytest.approx(math.fsum(a - b) / len(a), abs=1e-12)
    # A share of 20,000 resamples is off by 6 standard deviations once in 500 million.
    tolerance = 6 * math.sqrt(0.25 / 20_000)
    if len(set(users.tolist())) > 1:
        share = min((means <= 1e-12).mean(), (means >= -1e-12).mean())
        assert found.p == pytest.approx(min(1, 2 * share), abs=2 * tolerance)
    for end, at in [(found.low, 0.025), (found.high, 0.975)]:
        assert (means < end - 1e-12).mean() <= at + tolerance
        assert (means <= end + 1e-12).mean() >= at - tolerance


@pytest.mark.parametrize("cases", [1, 3])
def test_the_difference_matches_a_slow_loop(cases):
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(60), cases)
    a, b = (rng.random(len(users)) < rate for rate in (0.45, 0.35))
    found = paired_difference(a, b.astype(float), users, resamples=4000, seed=1)
    gains = [a[users == user].mean() - b[users == user].mean() for user in range(60)]
    means = [sum(gains[user] for user in rng.integers(60, size=60)) / 60 for _ in range(4000)]
    share = min(np.mean(np.array(means) <= 1e-12), np.mean(np.array(means) >= -1e-12))
    assert 0 < share < 0.5
    assert found.p == pytest.approx(2 * share, abs=2 * 6 * math.sqrt(2 * share / 4000))
    np.testing.assert_allclose([found.low, found.high], np.percentile(means, [2.5, 97.5]), atol=0.02)


def test_the_interval_is_scipys():
    rng = np.random.default_rng(3)
    a, b = rng.random(300), rng.random(300)
    found = paired_difference(a, b, np.arange(300), resamples=20_000, seed=0)
    theirs = stats.bootstrap((a - b,), np.mean, n_resamples=20_000, method="percentile", random_state=0)
    np.testing.assert_allclose([found.low, found.high], theirs.confidence_interval, atol=0.002)


@pytest.mark.parametrize("users", [np.arange(12), np.arange(12) // 3, np.zeros(12, int)])
def test_identical_systems_do_not_differ(users):
    values = np.random.default_rng(0).random(12)
    assert paired_difference(values, values, users, 50, 0) == Difference(0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("cases", [1, 4])
def test_a_clear_difference_is_as_small_as_the_resamples_allow(cases):
    users = np.repeat(np.arange(100), cases)
    better, worse = np.full(len(users), 0.75), np.where(users % 2, 0.25, 0.5)
    found = paired_difference(better, worse, users, 1000, 0)
    assert found.p == pytest.approx(2 / 1001)
    assert 0.25 <= found.low < found.mean == 0.375 < found.high <= 0.5
    swapped = paired_difference(worse, better, users, 1000, 0)
    assert (swapped.mean, swapped.p) == (-found.mean, found.p)


def test_resamples_that_tie_count_on_both_sides():
    """Of 4 resamples of two users, 1 is a win, 1 a loss and 2 are ties: each side has 3 of 4."""
    found = paired_difference(np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0, 1]), 1000, 0)
    assert found == Difference(0.0, -1.0, 1.0, 1.0)


def test_sums_that_only_rounding_keeps_from_zero_are_ties():
    """Both users have the same cases with the systems swapped; a third is off by rounding alone."""
    a, b = np.array([0.1, 0.2, 0.3, 0.1 + 0.2]), np.array([0.2, 0.1, 0.1 + 0.2, 0.3])
    assert paired_difference(a, b, np.array([0, 0, 1, 1]), 200, 0).p == 1
    third = paired_difference(np.full(3, 0.1 + 0.2), np.full(3, 0.3), np.arange(3), 200, 0)
    assert third.mean > 0
    assert third.p == 1


def test_one_user_shows_nothing():
    found = paired_difference(np.array([1.0, 0.5]), np.array([0.0, 0.0]), np.array([4, 4]), 1000, 0)
    assert found == Difference(0.75, 0.75, 0.75, 1.0)


def test_cases_of_one_user_are_drawn_together():
    """Four users of eight cases, three of them better in all: as many cases, drawn one by one, would be certain."""
    users = np.repeat([3, 5, 8, 9], 8)
    a, b = np.where(users == 9, 0.0, 1.0), np.where(users == 9, 1.0, 0.0)
    together = paired_difference(a, b, users, 2000, 0)
    alone = paired_difference(a, b, np.arange(32), 2000, 0)
    assert together.mean == alone.mean == 0.5
    assert together.low < 0 < alone.low
    assert alone.p < 0.02 < 0.3 < together.p


def test_the_seed_decides():
    a, b = np.random.default_rng(0).random((2, 50))
    users = np.arange(50) // 2
    assert paired_difference(a, b, users, 100, 0) == paired_difference(a, b, users, 100, 0)
    assert paired_difference(a, b, users, 100, 0) != paired_difference(a, b, users, 100, 1)


@pytest.mark.parametrize(
    ("a", "users", "resamples", "message"),
    [
        ([], [], 10, "expected one shape"),
        ([1.0, 0.0], [0], 10, "expected one shape"),
        ([math.nan], [0], 10, "not finite"),
        ([1.0], [0], 0, "resamples 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(a, users, resamples, message):
    values = np.array(a, dtype=float)
    with pytest.raises(ValueError, match=message):
        paired_difference(values, np.zeros(len(a)), np.array(users, dtype=int), resamples, 0)


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.02, 0.02, 0.9, 0.6])), [0.08, 0.08, 1.0, 1.0])
    assert holm(np.array([0.3])).tolist() == [0.3]
    assert holm(np.array([])).tolist() == []


@given(st.lists(PROBABILITIES, max_size=8))
def test_holm_equals_its_definition(p):
    """The greatest, over all p-values up to one's own, of the p-value times the number that are no smaller."""
    expected = [max(min(1, q * sum(r >= q for r in p)) for q in p if q <= own) for own in p]
    assert holm(np.array(p, dtype=float)).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("p", [[-0.1], [1.1], [math.nan]])
def test_holm_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match="expected numbers in"):
        holm(np.array(p))


def test_the_best_baseline_is_compared_with():
    rng = np.random.default_rng(0)
    users = np.arange(400) // 2
    rates = {"popularity": 0.1, "llmrec": 0.5, "knn": 0.3, "llmrec-b": 0.36, "llmrec-c": 0.05}
    values = {name: (rng.random(400) < rate).astype(float) for name, rate in rates.items()}
    found = compare_with_best(values, ["popularity", "knn"], users, 500, seed=2)
    assert json.loads(json.dumps(found)) == found
    assert found["best"] == "knn"
    assert list(found["systems"]) == ["llmrec", "llmrec-b", "llmrec-c"]
    alone = [paired_difference(values[name], values["knn"], users, 500, 2) for name in found["systems"]]
    for system, one in zip(found["systems"].values(), alone, strict=True):
        assert (system["difference"], system["interval"], system["p"]) == (one.mean, [one.low, one.high], one.p)
    assert [system["p_holm"] for system in found["systems"].values()] == holm(np.array([o.p for o in alone])).tolist()
    assert found["systems"]["llmrec"]["p_holm"] == pytest.approx(3 * 2 / 501), "the correction is over three systems"


def test_of_equal_baselines_the_first_named_is_the_best():
    values = {"ours": np.ones(3), "one": np.array([0.0, 1.0, 0.0]), "two": np.array([1.0, 0.0, 0.0])}
    assert compare_with_best(values, ["two", "one"], np.arange(3), 10, 0)["best"] == "two"
    assert compare_with_best({"one": np.ones(3)}, ["one"], np.arange(3), 10, 0) == {"best": "one", "systems": {}}


def test_a_comparison_needs_its_baselines():
    with pytest.raises(UserError, match="baselines"):
        compare_with_best({"ours": np.ones(3)}, [], np.arange(3), 10, 0)
    with pytest.raises(ValueError, match="expected names among"):
        compare_with_best({"ours": np.ones(3)}, ["other"], np.arange(3), 10, 0)
