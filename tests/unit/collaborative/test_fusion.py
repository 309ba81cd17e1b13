"""The fusion's formulas: planted weights, a bonus against every other bonus, and the file of the weights."""

import json
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tolerances import SCORES

from llmrec.collaborative.fusion import FusionWeights, best_bonus, bonus_limits, fit_weights, largest_bonus
from llmrec.errors import UserError

FEATURES = ("first_code", "later_codes", "dense", "text")
N = 16


def hits(weights, items, features, targets, new, bonus, cut) -> np.ndarray:
    """Whether each target is among the first `cut` when new items get that bonus; ties count against it."""
    found = []
    for row, target in enumerate(targets):
        there = items[row] >= 0
        side = new[items[row][there]]
        scores = replace(weights, bonus=bonus).scores(features[row][there], side)
        own = scores[items[row][there] == target]
        found.append(bool(len(own)) and int((scores >= own[0]).sum()) <= cut)
    return np.array(found)


@st.composite
def candidates(draw):
    """Whole features and weights, so that a bonus of half a point makes no ties: weights, items, features, targets,
    new."""
    n, width = draw(st.integers(1, 5)), draw(st.integers(1, N))
    items = np.stack([draw(st.permutations(range(N))) for _ in range(n)])[:, :width]
    for row in range(n):
        items[row, draw(st.integers(0, width)) :] = -1
    features = draw(hnp.arrays(np.int64, (n, width, 4), elements=st.integers(-3, 3))).astype(np.float32)
    numbers = st.lists(st.integers(-2, 3).map(float), min_size=4, max_size=4)
    weights = FusionWeights(draw(numbers), draw(numbers), float(draw(st.integers(-4, 4))), {}, list(FEATURES))
    targets = draw(hnp.arrays(np.int64, n, elements=st.integers(0, N - 1)))
    return weights, items, features, targets, draw(hnp.arrays(bool, N))


@given(candidates(), st.sampled_from([1, 3, 10]))
def test_bars_are_where_cases_turn(made, cut):
    weights, items, features, targets, new = made
    with patch("llmrec.collaborative.fusion.CUT", cut):
        bars = bonus_limits(weights, items, features, targets, new)
    is_cold_target = new[targets]
    for bonus in (-200.5, -7.5, -3.5, -1.5, -0.5, 0.5, 2.5, 6.5, 200.5):
        expected = hits(weights, items, features, targets, new, bonus, cut)
        np.testing.assert_array_equal(np.where(is_cold_target, bars < bonus, bars > bonus), expected)
    for bar in bars[np.isfinite(bars)]:
        before, after = (hits(weights, items, features, targets, new, bar + step, cut) for step in (-0.5, 0.5))
        turned = bars == bar
        assert (before[turned] == ~is_cold_target[turned]).all()
        assert (after[turned] == is_cold_target[turned]).all()


BARS = st.lists(
    st.one_of(st.integers(-6, 6).map(float), st.sampled_from([-np.inf, np.inf])), min_size=1, max_size=25
).map(np.array)


@given(BARS, st.floats(0, 1))
def test_the_largest_bonus_that_leaves_a_share(bars, least):
    least = min(least, float((bars > -np.inf).mean()))
    bonus = largest_bonus(bars, least)
    if bonus == np.inf:
        assert np.isposinf(bars).mean() >= least - 1e-9
        return
    assert (bars > bonus).mean() >= least - 1e-9
    assert (bars > np.nextafter(bonus, np.inf)).mean() < least


@given(BARS, BARS, st.floats(0, 1.2))
def test_the_fair_bonus_has_the_greatest_product(trained, new, least):
    """Of all bonuses between and beyond the turns that leave trained targets what they are due."""
    bars, is_cold_target = np.concatenate([trained, new]), np.arange(len(trained) + len(new)) >= len(trained)
    due = min(least, float((trained > -np.inf).mean()))

    def kept(bonus):
        return (trained > bonus).mean()

    def product(bonus):
        return kept(bonus) * (new < bonus).mean()

    bonus = best_bonus(bars, is_cold_target, least)
    assert np.isfinite(bonus)
    assert kept(bonus) >= due - 1e-9
    rivals = [rival for rival in np.arange(-10.25, 10.5, 0.5) if kept(rival) >= due - 1e-9]
    assert product(bonus) == pytest.approx(max(product(rival) for rival in rivals))


def test_without_new_cases_the_bonus_is_none_or_what_the_others_bear():
    bars, none = np.array([-3.0, 2.0, 5.0, np.inf]), np.zeros(4, bool)
    assert best_bonus(bars, none, 0.75) == 0.0
    assert best_bonus(bars, none, 1.0) == np.nextafter(-3.0, -np.inf)


def planted(n, width, weights, seed=0):
    """EvalExamples whose targets were drawn by a softmax over known weights."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, width, 4)) * [1, 3, 0.5, 0.2]
    items = np.stack([rng.permutation(40)[:width] for _ in range(n)])
    scores = features @ np.array(weights) + rng.gumbel(size=(n, width))
    return items, features, items[np.arange(n), scores.argmax(axis=1)]


def test_planted_weights_are_found():
    weights = [1.0, 0.3, 0.0, 4.0]
    items, features, targets = planted(3000, 12, weights)
    everything = np.ones(items.shape, bool)
    found = fit_weights(items, features, targets, everything, np.ones(3000, bool))
    np.testing.assert_allclose(found * [1, 3, 0.5, 0.2], np.array(weights) * [1, 3, 0.5, 0.2], atol=0.08)


@pytest.mark.parametrize("constant", [0.0, 3.0, -7.541, 1e-12])
def test_a_feature_that_is_the_same_everywhere_has_no_weight(constant):
    items, features, targets = planted(400, 12, [1.0, 0.3, 0.0, 4.0])
    everything, cases = np.ones(items.shape, bool), np.ones(400, bool)
    alone = fit_weights(items, features, targets, everything, cases)
    beside = np.concatenate([features, np.full((*items.shape, 1), constant, np.float32)], axis=2)
    found = fit_weights(items, beside, targets, everything, cases)
    np.testing.assert_allclose(found, [*alone, 0.0], atol=SCORES)


def test_only_the_candidates_and_cases_of_a_kind_count():
    items, features, targets = planted(400, 12, [1.0, 0.3, 0.0, 4.0])
    mine = np.arange(12) < 8
    cases = np.arange(400) % 2 == 0
    among = np.tile(mine, (400, 1))
    found = fit_weights(items, features, targets, among, cases)
    chosen = cases & (items[:, :8] == targets[:, None]).any(axis=1)
    whole = np.ones((int(chosen.sum()), 8), bool)
    alone = fit_weights(items[chosen][:, :8], features[chosen][:, :8], targets[chosen], whole, whole[:, 0])
    np.testing.assert_allclose(found, alone, atol=SCORES)


def test_fewer_than_twenty_targets_teach_nothing():
    items, features, targets = planted(20, 5, [1, 1, 1, 1])
    everything = np.ones(items.shape, bool)
    assert fit_weights(items, features, targets, everything, np.ones(20, bool)) is not None
    targets[3] = 99  # is no candidate
    assert fit_weights(items, features, targets, everything, np.ones(20, bool)) is None


WEIGHTS = FusionWeights(
    [1.0, 0.8, 0.5, 2.0], [0.7, 0.0, 1.0, 3.0], -0.25, {"cold_examples": 40, "recall@10_cold": 0.125}, list(FEATURES)
)


def test_scores_of_known_features():
    features = np.array([[1, 0, 0, 0], [0, 2, 0, 1], [1, 1, 1, 1]], float)
    assert WEIGHTS.scores(features, np.array([True, False, True])).tolist() == pytest.approx([0.45, 3.6, 4.45])


def test_the_file_gives_them_back(tmp_path):
    WEIGHTS.save(tmp_path / "fusion.json")
    assert FusionWeights.load(tmp_path / "fusion.json") == WEIGHTS


@pytest.mark.parametrize(
    "change",
    [
        {"features": ["first_code", "later_codes", "dense"]},
        {"features": None},
        {"trained": [1, 2, 3]},
        {"new": [1, 2, 3, None]},
        {"new": "abcd"},
        {"bonus": "much"},
        {"bonus": float("nan")},
        {"trained": [1, 2, 3, float("inf")]},
        {"more": 3},
    ],
    ids=str,
)
def test_other_weights_are_refused_in_one_line(tmp_path, change):
    path = tmp_path / "fusion.json"
    WEIGHTS.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"fusion\.json: not fusion weights that llmrec saved: ") as caught:
        FusionWeights.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"features": "x"', "\x00\xff"])
def test_other_files_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "fusion.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"fusion\.json: not fusion weights that llmrec saved: ") as caught:
        FusionWeights.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"fusion\.json"):
        FusionWeights.load(tmp_path / "fusion.json")
    assert len(FEATURES) == 4
