"""What the fusion learns on validation cases: weights that were planted, and a bonus against every other bonus."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tolerances import SCORES

from llmrec.collaborative.fusion import FusionWeights, best_bonus, bonus_limits, fit_weights, largest_bonus
from llmrec.data import EvalExamples
from llmrec.decode.calibrate import calibrate, gather
from llmrec.decode.config import DecodeConfig
from llmrec.decode.filters import Filter
from llmrec.decode.ranker import ItemRanker, make_ranking
from llmrec.decode.rankings.base import ItemFacts
from llmrec.decode.rankings.fusion import FEATURES
from llmrec.decode.tree import TreeSearch
from llmrec.index.dense import DenseIndex
from llmrec.model.adapter import DenseHead

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


@pytest.fixture
def three(monkeypatch):
    """Recall@3 instead of recall@10, as the shop has 20 items."""
    for module in ("collaborative.fusion", "decode.calibrate"):
        monkeypatch.setattr(f"llmrec.{module}.CUT", 3)


@pytest.fixture
def ranker_of(deep, new_items):
    """`ranker_of(weights)`: by fusion, or by another method."""
    torch.manual_seed(1)
    texts = np.random.default_rng(2).normal(size=(20, 12)).astype(np.float32)
    dense = DenseIndex.of(DenseHead(32, 12, 6), texts)
    config = DecodeConfig(beams=6, dtype="float32", batch_size=16)
    search = TreeSearch(deep.model, deep.vocabulary, deep.trie, config, is_cold=new_items)

    def make(weights=None, name="fusion"):
        method = make_ranking(search, ItemFacts(new_items, 2, dense, weights), config, name)
        return ItemRanker(deep.renderer, search, 160, method)

    return make


@pytest.fixture
def cases_of(new_items):
    """`cases_of(trained, new)`: so many cases with targets of each kind."""

    def make(trained, new):
        rng = np.random.default_rng(4)
        warm, cold = np.flatnonzero(~new_items), np.flatnonzero(new_items)
        targets = np.concatenate([rng.choice(warm, trained), rng.choice(cold, new)]).astype(np.int32)
        histories = [rng.choice(warm, 1 + row % 4, replace=False).astype(np.int32) for row in range(len(targets))]
        return EvalExamples(np.arange(len(targets), dtype=np.int32), histories, targets)

    return make


def recalls(ranker, cases, new):
    """Recall@3 of trained and of new targets, by asking, with what stands in a history left out."""
    filters = [Filter(excluded=np.setdiff1d(h, t)) for h, t in zip(cases.histories, cases.targets, strict=True)]
    ranking = ranker.rank([ranker.prompt_ids(history) for history in cases.histories], 6, filters)
    found = (ranking.items[:, :3] == cases.targets[:, None]).any(axis=1)
    return found[~new[cases.targets]].mean(), found[new[cases.targets]].mean()


def test_candidates_are_those_of_a_ranking(three, ranker_of, cases_of, new_items):
    ranker, cases = ranker_of(), cases_of(9, 8)
    items, features, beams = gather(ranker, cases)
    assert items.shape == features.shape[:2]
    beam = ranker_of(name="beam")
    for row, (history, target) in enumerate(zip(cases.histories, cases.targets, strict=True)):
        prompt, own = [ranker.prompt_ids(history)], [Filter(excluded=np.setdiff1d(history, target))]
        scored = ranker.method.scored(ranker.search.prefill(prompt), 6, own)
        there = items[row] >= 0
        assert items[row][there].tolist() == scored.items[0].tolist()
        np.testing.assert_allclose(features[row][there], scored.features[0], atol=SCORES)
        assert not set(items[row]) & set(history.tolist()) - {int(target)}
        assert beams[row] == (target in beam.rank(prompt, 3, own).items[0])


@pytest.mark.parametrize("floor", [0.0, 0.7, 1.0, 9.0])
def test_what_was_measured_is_what_the_ranking_has(three, ranker_of, cases_of, new_items, floor):
    cases = cases_of(40, 30)
    weights = calibrate(ranker_of(), cases, floor)
    warm, cold = recalls(ranker_of(weights), cases, new_items)
    assert (warm, cold) == pytest.approx((weights.measured["recall@10_warm"], weights.measured["recall@10_cold"]))
    beams, _ = recalls(ranker_of(name="beam"), cases, new_items)
    assert weights.measured["beam_recall@10_warm"] == pytest.approx(beams)
    assert (weights.measured["warm_examples"], weights.measured["cold_examples"]) == (40, 30)
    # Without any new item trained ones have the most they can.
    most, _ = recalls(ranker_of(replace(weights, bonus=-1e6)), cases, new_items)
    assert warm >= min(floor * beams, most) - 1e-9


def test_a_lower_floor_never_has_the_smaller_product(three, ranker_of, cases_of):
    cases, products = cases_of(40, 30), []
    for floor in (9.0, 1.0, 0.5, 0.0):
        measured = calibrate(ranker_of(), cases, floor).measured
        products.append(measured["recall@10_warm"] * measured["recall@10_cold"])
    assert products == sorted(products)
    assert products[-1] > 0


@pytest.mark.parametrize("trained", [0, 19])
def test_too_few_trained_targets_teach_nothing(three, ranker_of, cases_of, caplog, trained):
    with caplog.at_level("WARNING", logger="llmrec"):
        assert calibrate(ranker_of(), cases_of(trained, 30 if trained else 0), 1.0) is None
    assert "the fusion is not calibrated: fewer than 20 validation examples" in caplog.text


@pytest.mark.parametrize("new", [0, 7])
def test_with_too_few_new_targets_new_items_are_weighed_as_the_others(three, ranker_of, cases_of, caplog, new):
    with caplog.at_level("INFO", logger="llmrec"):
        weights = calibrate(ranker_of(), cases_of(60, new), 1.0)
    assert weights.cold == weights.warm
    assert "cold items weigh as warm ones" in caplog.text
    assert ("recall@10_cold" in weights.measured) == (new > 0)
    assert np.isfinite(weights.bonus)


def test_another_ranking_is_no_ranking_to_calibrate(ranker_of, cases_of):
    with pytest.raises(ValueError, match="expected a ranker by fusion"):
        calibrate(ranker_of(name="beam"), cases_of(1, 1), 1.0)
