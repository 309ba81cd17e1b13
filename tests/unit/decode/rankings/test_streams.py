"""Two streams against all items scored the slow way in both, and the second one as a feature of the fusion."""

import math
from dataclasses import replace

import numpy as np
import pytest
from second_stream import second_renderer, stream_of
from tolerances import SCORES

from llmrec.collaborative.fusion import FusionWeights
from llmrec.data import EvalExamples
from llmrec.decode.calibrate import calibrate, gather
from llmrec.decode.config import DecodeConfig
from llmrec.decode.filters import Filter
from llmrec.decode.ranker import ItemRanker, make_ranking
from llmrec.decode.rankings.fusion import FEATURES
from llmrec.decode.rankings.streams import merged
from llmrec.decode.search import Prompt, Ranking
from llmrec.decode.tree import TreeSearch

WITHOUT = np.array([4, 12, 19])
"""Items without codes of behaviour."""
SOME = np.setdiff1d(np.arange(20), WITHOUT)
HISTORIES = [[0, 5, 7], [11], [2, 4, 6, 8], [19, 4]]
"""The last one has no item with such codes."""


@pytest.fixture
def asked(deep) -> list[Prompt]:
    """In the codes of the texts."""
    texts = [deep.renderer.prompt("sequential", 0, history=deep.renderer.history(history)) for history in HISTORIES]
    return [*map(Prompt, deep.renderer.encode_prompts(texts), HISTORIES)]


@pytest.fixture
def second(deep):
    return second_renderer(deep, WITHOUT)


@pytest.fixture
def slow(deep, facts, second, asked, exhaustive) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each item in each stream, float64 [4, 20]; -inf where the second stream knows nothing."""
    texts = exhaustive(deep, asked, "catalogue", facts.is_cold).sum(axis=2)
    prompts = [second.prompt("sequential", 0, history=second.history(history)) for history in HISTORIES[:3]]
    other = replace(deep, codes=second.codes[SOME], vocabulary=second.vocabulary)
    behaviour = np.full((4, 20), -np.inf)
    found = exhaustive(other, second.encode_prompts(prompts), "catalogue", facts.is_cold[SOME])
    behaviour[:3, SOME] = found.sum(axis=2)
    return texts, behaviour


@pytest.fixture
def method_of(deep, facts, second):
    """`method_of(name, settings)`: as many beams as items unless told otherwise."""

    def make(name, weights=None, **settings):
        config = DecodeConfig(**{"beams": 20, "dtype": "float32", "batch_size": 3, **settings})
        search = TreeSearch(deep.model, deep.vocabulary, deep.trie, config, is_cold=facts.is_cold)
        known = replace(facts, fusion_weights=weights, behaviour=stream_of(search, second))
        return make_ranking(search, known, config, name)

    return make


def test_each_item_has_the_better_of_its_log_probabilities(method_of, asked, slow) -> None:
    best = np.maximum(*slow)
    assert (slow[0] > slow[1]).any(axis=1).all(), "each stream is the better one somewhere"
    assert (slow[1] > slow[0])[:3].any(axis=1).all()
    ranking = method_of("streams").rank(asked, 20)
    assert (np.sort(ranking.items, axis=1) == np.arange(20)).all()
    np.testing.assert_allclose(ranking.scores, np.take_along_axis(best, ranking.items, axis=1), atol=SCORES)
    np.testing.assert_allclose(ranking.scores, -np.sort(-best, axis=1), atol=SCORES)


@pytest.mark.parametrize("k", [1, 4, 9])
def test_filters_and_offsets_hold_in_both_streams(method_of, asked, slow, k) -> None:
    offsets = np.linspace(-2, 2, 20).astype(np.float32)
    filters = [Filter(excluded=np.arange(8)), Filter(allowed=WITHOUT), Filter(), Filter(allowed=np.arange(15))]
    ranking = method_of("streams").rank(asked, k, filters, offsets)
    best = np.maximum(*slow) + offsets
    for row, own in enumerate(filters):
        left = np.flatnonzero(own.allows(np.arange(20)))
        expected = np.sort(best[row, left])[::-1][:k]
        np.testing.assert_allclose(ranking.scores[row, : len(expected)], expected, atol=SCORES)
        assert set(ranking.items[row].tolist()) <= {*left.tolist(), -1}


def test_the_second_stream_alone_ranks_its_items_and_leaves_the_rest_to_the_texts(method_of, asked, slow) -> None:
    ranking = method_of("behaviour").rank(asked, 20)
    texts, behaviour = slow
    for row in range(3):
        found = ranking.items[row][ranking.items[row] >= 0]
        assert sorted(found) == SOME.tolist()
        np.testing.assert_allclose(ranking.scores[row][:17], behaviour[row, found], atol=SCORES)
    np.testing.assert_allclose(ranking.scores[3], texts[3, ranking.items[3]], atol=SCORES)


def test_words_are_ranked_by_the_texts_alone(deep, method_of) -> None:
    text = deep.renderer.prompt("personal-search", 0, history=deep.renderer.history([0, 5]), query="hand balm")
    words = [Prompt(*deep.renderer.encode_prompts([text]), [0, 5], "hand balm")]
    beams = method_of("beam").rank(words, 6)
    for name in ("streams", "behaviour"):
        ranking = method_of(name).rank(words, 6)
        assert sorted(ranking.items[0]) == sorted(beams.items[0])  # two items share their codes of the texts
        np.testing.assert_array_equal(ranking.scores, beams.scores)


def test_merging_by_hand() -> None:
    first = Ranking(np.array([[4, 2, -1]]), np.array([[-1.0, -2.0, -np.inf]], np.float32), 3, 2, 1, 0)
    second = Ranking(np.array([[2, 7, 4]]), np.array([[-0.5, -1.5, -3.0]], np.float32), 2, 3, 0, 1)
    both = merged(first, second, 4)
    assert both.items.tolist() == [[2, 4, 7, -1]]
    assert both.scores.tolist() == [[-0.5, -1.0, -1.5, -np.inf]]
    assert (both.width, both.beams, both.invalid, both.invalid_first) == (3, 5, 1, 1)
    none = Ranking.joined(1, 3, [])
    assert merged(first, none, 2).items.tolist() == merged(none, first, 2).items.tolist() == [[4, 2]]


def test_the_fusion_has_its_log_probability_as_a_feature(method_of, asked, slow) -> None:
    """What the stream does not know is as likely as any of its items."""
    method = method_of("fusion")
    scored = method.scored(method.search.prefill(asked), 20, None)
    assert method.features == [*FEATURES, "behaviour"]
    assert (scored.items == np.arange(20)).all()
    expected = np.where(np.isneginf(slow[1]), -math.log(17), slow[1])
    np.testing.assert_allclose(scored.features[..., -1], expected, atol=SCORES)
    np.testing.assert_allclose(scored.streams.scores, method_of("streams").rank(asked, 20).scores, atol=SCORES)


def test_its_best_items_are_candidates_and_a_weight_on_it_alone_ranks_by_it(method_of, asked, slow) -> None:
    alone = FusionWeights([0.0] * 4 + [1.0], [0.0] * 4 + [1.0], 0.0, {}, [*FEATURES, "behaviour"])
    ranking = method_of("fusion", alone, beams=2).rank(asked, 2)
    np.testing.assert_allclose(ranking.scores[:3], -np.sort(-slow[1][:3], axis=1)[:, :2], atol=SCORES)


def test_the_calibration_compares_two_streams_with_the_others(deep, facts, method_of) -> None:
    rng = np.random.default_rng(0)
    warm = np.flatnonzero(~facts.is_cold)
    histories = [rng.choice(warm, 3, replace=False).astype(np.int32) for _ in range(60)]
    cases = EvalExamples(np.arange(60), histories, rng.choice(warm, 60).astype(np.int32))
    method = method_of("fusion", beams=6)
    ranker = ItemRanker(deep.renderer, method.search, 160, method)
    _, _, searched = gather(ranker, cases)
    filters = [Filter(excluded=np.setdiff1d(h, t)) for h, t in zip(histories, cases.targets, strict=True)]
    for name in ("streams", "beam"):
        found = method_of(name, beams=20).rank([ranker.prompt_ids(h) for h in histories], 10, filters).items
        hits = found == cases.targets[:, None]
        np.testing.assert_array_equal(searched[name], np.where(hits.any(axis=1), 1.0 + hits.argmax(axis=1), np.inf))
    weights = calibrate(ranker, cases, 0.0)
    assert weights is not None
    assert weights.measured["ndcg@10_streams"] == pytest.approx(
        np.where(searched["streams"] <= 10, 1 / np.log2(searched["streams"] + 1), 0).mean()
    )
    assert weights.best == max(
        ("fusion", "dense", "streams", "beam"), key=lambda name: weights.measured[f"ndcg@10_{name}"]
    )
