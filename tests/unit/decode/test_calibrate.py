"""What the fusion of a model learns on validation cases, against its own ranking."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from circle import experts_of
from tolerances import SCORES

from llmrec.collaborative.fusion import FusionWeights
from llmrec.collaborative.ranker import LearnedRanker
from llmrec.data import EvalExamples
from llmrec.decode.calibrate import _ranks, best_ranking, calibrate, compare_rankings, gather
from llmrec.decode.config import DecodeConfig
from llmrec.decode.filters import Filter
from llmrec.decode.ranker import ItemRanker, make_ranking
from llmrec.decode.rankings.base import ItemFacts
from llmrec.decode.tree import TreeSearch
from llmrec.index.dense import DenseIndex
from llmrec.model.adapter import DenseHead


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
        assert (beams["beam"][row] <= 3) == (target in beam.rank(prompt, 3, own).items[0])


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


def planted(n: int, noise: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Candidates of n examples: an expert knows something of the target, the dense head less, other columns nothing."""
    rng = np.random.default_rng(5)
    items = np.stack([rng.permutation(40)[:12] for _ in range(n)])
    targets = items[np.arange(n), rng.integers(0, 12, n)]
    hits = items == targets[:, None]
    features = rng.normal(size=(n, 12, noise + 2)).astype(np.float32)
    features[..., noise] += hits
    features[..., noise + 1] += 2 * hits
    return items, features, targets, [*(f"noise{i}" for i in range(noise)), "dense", "experts.markov"]


@pytest.mark.parametrize(("n", "noise", "best"), [(2000, 1, "fusion"), (80, 30, "experts")])
def test_validation_chooses_what_ranks_unseen_examples_best(n, noise, best):
    items, features, targets, names = planted(n, noise)
    beams = np.full(n, np.inf)
    beams[: n // 10] = 1.0
    own = features[..., noise]
    single = {"beam": beams, "dense": _ranks(items, own, targets)}
    chances = compare_rankings(items, features, targets, np.zeros(40, bool), names, single, (0.0, 0.0))
    assert best_ranking(chances) == best
    assert chances["beam"].tolist() == [1.0] * (n // 10) + [0.0] * (n - n // 10)
    places = [int((own[row] > own[row][items[row] == targets[row]]).sum()) for row in range(n)]
    assert chances["dense"] == pytest.approx([1 / np.log2(p + 2) if p < 10 else 0 for p in places])


def test_the_beams_may_be_best():
    items, features, targets, names = planted(200, 1)
    none = np.zeros(40, bool)
    beams = np.ones(200)
    chances = compare_rankings(items, features, targets, none, names, {"beam": beams}, (0.0, 0.0))
    assert (chances["beam"] == 1).all()
    assert best_ranking(chances) == "beam"
    few = compare_rankings(items[:10], features[:10], targets[:10], none, names, {"beam": beams[:10]}, (0.0, 0.0))
    assert list(few) == ["fusion"], "too few examples to learn from"
    assert not few["fusion"].any()
    assert best_ranking(few) == "fusion"


@pytest.mark.parametrize(("better", "worse", "best"), [(30, 20, "dense"), (26, 20, "fusion"), (20, 20, "fusion")])
def test_the_fusion_is_kept_unless_another_is_better_by_more_than_chance(better, worse, best):
    """Of 400 examples the dense head has `better` that the fusion misses, and misses `worse` that it has.

    The difference is (b - w) / 400, its standard error about sqrt(b + w) / 400: .0250 and .0177 for 30 and 20 examples,
    .0150 and .0170 for 26 and 20."""
    fusion, dense = np.zeros(400), np.zeros(400)
    dense[:better] = 1.0
    fusion[better : better + worse] = 1.0
    assert best_ranking({"fusion": fusion, "dense": dense, "beam": fusion / 2}) == best


def test_of_several_better_ones_the_best_is_taken():
    rng = np.random.default_rng(0)
    base = rng.random(200) / 2
    assert best_ranking({"fusion": base, "experts": base + 0.1, "dense": base + 0.2, "beam": base - 0.1}) == "dense"


@pytest.fixture
def chances(monkeypatch):
    """`chances(fusion=0.2, ...)`: what the comparison of rankings says of every example."""

    def say(**found):
        each = {name: np.full(90, value) for name, value in found.items()}
        monkeypatch.setattr("llmrec.decode.calibrate.compare_rankings", lambda *_: dict(each))

    return say


@pytest.mark.parametrize(("best", "floor", "least"), [("dense", 1.0, 0.4), ("dense", 0.9, 0.36), ("fusion", 1.0, 0.0)])
def test_cold_items_cost_no_more_than_makes_another_ranking_better(
    three, ranker_of, cases_of, new_items, chances, monkeypatch, best, floor, least
):
    """The dense head is said to find 24 of 60 warm targets, where the fusion would give up all but 18 for cold ones."""
    cases = cases_of(60, 30)
    ranks = np.where(np.arange(90) < 24, 1.0, np.inf)
    monkeypatch.setattr("llmrec.decode.calibrate._ranks", lambda *_: ranks)
    chances(**{"fusion": 0.2, "dense": 0.1, "beam": 0.1, best: 0.3})
    weights = calibrate(ranker_of(), cases, floor)
    warm, _ = recalls(ranker_of(weights), cases, new_items)
    assert warm == pytest.approx(weights.measured["recall@10_warm"])
    assert warm >= least
    assert (warm > 0.31) == (best == "dense")


def test_a_learned_order_counts_with_what_it_gained(ranker_of, cases_of, chances, monkeypatch):
    ranker, gained = ranker_of(), LearnedRanker([], gain=0.3)
    experts = experts_of(ranker.method.facts)
    experts.config, experts.ranker = replace(experts.config, learned=True), LearnedRanker([], gain=0.1)
    ranker.method.facts = replace(ranker.method.facts, experts=experts)
    monkeypatch.setattr("llmrec.decode.calibrate._learned_order", lambda *_: gained)
    chances(fusion=0.2, experts=0.3, dense=0.1, beam=0.1)
    found = calibrate(ranker, cases_of(40, 30), 1.0)
    assert (found.measured["ndcg@10_fusion"], found.measured["ndcg@10_experts"]) == pytest.approx((0.5, 0.4))
    assert found.best == "fusion"
    assert found.measured["ndcg@10_dense"] == pytest.approx(0.1)


def test_weights_say_what_was_best(ranker_of, cases_of, tmp_path):
    weights = calibrate(ranker_of(), cases_of(80, 30), 1.0)
    chances = {name: weights.measured[f"ndcg@10_{name}"] for name in ("fusion", "dense", "beam")}
    assert weights.best in ("fusion", max(chances, key=lambda name: chances[name]))
    weights.save(tmp_path / "fusion.json")
    assert FusionWeights.load(tmp_path / "fusion.json").best == weights.best
