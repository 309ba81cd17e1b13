"""The experts rank alone after a history; what they know nothing of goes to the beams."""

from dataclasses import replace

import numpy as np
import pytest

from llmrec.collaborative.ranker import LearnedRanker
from llmrec.decode.config import DecodeConfig
from llmrec.decode.filters import Filter
from llmrec.decode.ranker import make_ranking
from llmrec.decode.rankings import fusion
from llmrec.decode.search import Offsets, Prompt
from llmrec.decode.tree import TreeSearch


@pytest.fixture
def ranking_of(deep, facts, experts):
    """`ranking_of(name)`, for batches of two."""

    def make(name="experts", beams=6):
        config = DecodeConfig(beams=beams, dtype="float32", batch_size=2)
        search = TreeSearch(deep.model, deep.vocabulary, deep.trie, config, is_cold=facts.is_cold)
        return make_ranking(search, replace(facts, experts=experts), config, name)

    return make


def test_scores_are_those_of_the_experts(ranking_of, experts, prompts) -> None:
    found = ranking_of().rank(prompts, 20)
    expected = experts.scores([prompt.history for prompt in prompts])
    assert (np.sort(found.items, axis=1) == np.arange(20)).all()
    np.testing.assert_allclose(found.scores, np.take_along_axis(expected, found.items, axis=1), atol=1e-6)
    np.testing.assert_allclose(found.scores, -np.sort(-expected, axis=1), atol=1e-6)


def test_the_model_is_not_asked(ranking_of, prompts, monkeypatch) -> None:
    method = ranking_of()
    monkeypatch.setattr(method.search, "prefill", lambda *_: pytest.fail("the model was asked"))
    method.rank(prompts, 5)


def test_filters_and_offsets_hold_in_every_batch(ranking_of, experts, prompts) -> None:
    offsets = np.linspace(-3, 3, 20).astype(np.float32)
    filters = [Filter(excluded=np.array([row, 10 + row])) for row in range(4)]
    found = ranking_of().rank(prompts, 18, filters, offsets)
    expected = experts.scores([prompt.history for prompt in prompts]) + offsets
    for row in range(4):
        left = np.setdiff1d(np.arange(20), [row, 10 + row])
        assert found.items[row].tolist() == left[np.argsort(-expected[row, left], kind="stable")].tolist()


def test_words_and_empty_histories_are_ranked_by_the_beams(deep, ranking_of, prompts) -> None:
    text = deep.renderer.prompt("search", 0, query="hand balm")
    words = Prompt(*deep.renderer.encode_prompts([text]), [0, 5], "hand balm")
    empty = Prompt(*deep.renderer.encode_prompts([deep.renderer.prompt("sequential", 0, history="")]))
    asked = [prompts[0], words, empty, prompts[1]]
    filters = [Filter(excluded=np.array([row])) for row in range(4)]
    found = ranking_of().rank(asked, 6, filters)
    beams = ranking_of("beam").rank([words, empty], 6, filters[1:3])
    alone = ranking_of().rank([prompts[0], prompts[1]], 6, [filters[0], filters[3]])
    np.testing.assert_array_equal(found.items[[1, 2]], beams.items)
    np.testing.assert_array_equal(found.items[[0, 3]], alone.items)


def test_a_learned_order_counts(ranking_of, experts, prompts, monkeypatch) -> None:
    class Reversed(LearnedRanker):
        def order(self, lists):
            return np.argsort(np.where(lists.items >= 0, -np.arange(lists.items.shape[1]), 1), axis=1, kind="stable")

    before = ranking_of().rank(prompts[:1], 3)
    monkeypatch.setattr(experts, "ranker", Reversed([]))
    after = ranking_of().rank(prompts[:1], 3)
    assert not set(before.items[0]) & set(after.items[0]), "the best have become the last"


@pytest.mark.parametrize("learned", [False, True])
def test_the_fusion_reaches_as_deep_as_a_learned_order_of_the_experts(
    deep, ranking_of, experts, prompts, monkeypatch, learned
) -> None:
    monkeypatch.setattr(fusion, "LISTED", 15)
    monkeypatch.setattr(experts, "config", replace(experts.config, learned=learned))
    method = ranking_of("fusion", beams=2)
    filters = [Filter(excluded=np.array([row])) for row in range(4)]
    offsets = np.linspace(-3, 3, 20).astype(np.float32)
    scored = method.scored(method.search.prefill(prompts), 2, filters, Offsets(deep.trie, offsets))
    scores = experts.fused(experts.values([prompt.history for prompt in prompts])) + offsets
    for row in range(4):
        best = [item for item in np.argsort(-scores[row], kind="stable").tolist() if item != row][:15]
        assert (set(best) <= set(scored.items[row].tolist())) is learned
        assert row not in scored.items[row]
