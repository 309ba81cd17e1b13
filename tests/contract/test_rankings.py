"""One contract for all ranking methods, on a model whose every score can be computed the slow way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from circle import experts_of
from second_stream import second_renderer, stream_of
from tolerances import SCORES

from llmrec.collaborative.fusion import FusionWeights
from llmrec.decode.config import TWO_STREAMS, DecodeConfig
from llmrec.decode.filters import Filter
from llmrec.decode.ranker import METHODS, ItemRanker, make_ranking
from llmrec.decode.rankings.base import ItemFacts
from llmrec.decode.rankings.fusion import FEATURES
from llmrec.decode.search import NotNumbersError, Prompt
from llmrec.decode.tree import TreeSearch
from llmrec.index.dense import DenseIndex
from llmrec.index.trie import ItemTrie
from llmrec.model.adapter import DenseHead
from llmrec.tasks.render import Renderer

NEW = [3, 8, 9, 14]
OLD = np.setdiff1d(np.arange(20), NEW)
HISTORIES = [[0, 5, 7], [11], [2, 4, 6, 8], [19, 1]]
RANK_NEW = [name for name in METHODS if name != "behaviour"]
"""Cold items have no codes of behaviour."""


@pytest.fixture(scope="module")
def facts_of():
    def make(shop) -> ItemFacts:
        torch.manual_seed(1)
        head = DenseHead(shop.model.config.hidden_size, 12, 6)
        texts = np.random.default_rng(2).normal(size=(len(shop.catalog), 12)).astype(np.float32)
        new = np.zeros(len(shop.catalog), bool)
        new[NEW] = True
        weights = FusionWeights([1.0, 0.8, 0.5, 2.0], [0.7, 0.0, 1.0, 3.0], 0.5, {}, list(FEATURES))
        return ItemFacts(new, content_levels=2, dense=DenseIndex.of(head, texts), fusion_weights=weights)

    return make


@pytest.fixture
def second_of(shop):
    """The second codes of the items in `rows`; their tokens are added once."""
    second = second_renderer(shop, np.array(NEW))

    def make(rows: np.ndarray) -> Renderer:
        templates, most = second.templates, second.max_history
        return Renderer(second.tokenizer, second.vocabulary, second.codes[rows], templates, most)

    return make


@pytest.fixture
def setting(shop, facts_of, request):
    """Search, facts and prompts of the tiny shop; as many beams as items unless told otherwise."""

    def make(name, known=lambda facts: facts, trie=None, **changes):
        config = DecodeConfig(**{"beams": 20, "dtype": "float32", "batch_size": 3, **changes})
        facts = facts_of(shop)
        if name == "experts":
            facts = replace(facts, experts=experts_of(facts))
        facts = known(facts)
        second = request.getfixturevalue("second_of") if name in TWO_STREAMS else None
        search = TreeSearch(shop.model, shop.vocabulary, trie or shop.trie, config, is_cold=facts.is_cold)
        if second is not None:
            facts = replace(facts, behaviour=stream_of(search, second(np.arange(20) if trie is None else OLD)))
        prompts = [ItemRanker(shop.renderer, search, 160).prompt_ids(history) for history in HISTORIES]
        return make_ranking(search, facts, search.config, name), prompts

    return make


@pytest.mark.parametrize("name", METHODS)
def test_ranks_every_item_once_best_first(setting, name) -> None:
    method, prompts = setting(name)
    ranking = method.rank(prompts, 20)
    for items, scores in zip(ranking.items, ranking.scores, strict=True):
        found = items[items >= 0]
        assert len(set(found.tolist())) == len(found) > 0
        assert (items >= 0).argmin() in (0, len(found)), "padding at the end"
        assert (np.diff(scores[: len(found)]) <= 0).all()
        assert np.isneginf(scores[len(found) :]).all()


@pytest.mark.parametrize("name", METHODS)
def test_filters_hold(setting, name) -> None:
    method, prompts = setting(name)
    filters = [Filter(allowed=np.array([3, 5, 6, 8])), Filter(excluded=np.arange(15)), Filter(), Filter()]
    ranking = method.rank(prompts, 20, filters)
    assert set(ranking.items[0].tolist()) <= {3, 5, 6, 8, -1}
    assert set(ranking.items[1].tolist()) <= {*range(15, 20), -1}


@pytest.mark.parametrize("name", METHODS)
def test_batches_do_not_matter(setting, name) -> None:
    together, prompts = setting(name, batch_size=4)
    alone, _ = setting(name, batch_size=1)
    first, second = together.rank(prompts, 6), alone.rank(prompts, 6)
    np.testing.assert_array_equal(first.items, second.items)
    np.testing.assert_allclose(first.scores, second.scores, atol=SCORES)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("quota", "specgr", "session")])
def test_offsets_are_added(setting, name) -> None:
    method, prompts = setting(name)
    offsets = np.zeros(20, np.float32)
    offsets[[2, 9]] = [1.5, -0.5]
    plain, moved = method.rank(prompts, 20), method.rank(prompts, 20, offsets=offsets)
    for row in range(len(prompts)):
        before = dict(zip(plain.items[row].tolist(), plain.scores[row].tolist(), strict=True))
        after = dict(zip(moved.items[row].tolist(), moved.scores[row].tolist(), strict=True))
        for item in before.keys() & after.keys() - {-1}:
            assert after[item] == pytest.approx(before[item] + offsets[item], abs=SCORES)


@pytest.mark.parametrize("name", RANK_NEW)
def test_new_items_can_come_out(setting, name) -> None:
    """With enough room every method ranks new items, beside the others."""
    method, prompts = setting(name, quota=0.5, quota_prefix=1)
    ranking = method.rank(prompts, 20)
    assert set(NEW) & set(ranking.items[ranking.items >= 0].tolist())


@pytest.mark.parametrize("beams", [3, 20])
@pytest.mark.parametrize("name", METHODS)
def test_new_items_change_nothing_among_the_others(shop, setting, name, beams) -> None:
    """A catalogue of the others alone gives the same ranking as a filter that lets only them through."""
    old, trie = OLD, ItemTrie.build(shop.codes[OLD], shop.trie.level_sizes)
    grown, prompts = setting(name, beams=beams)

    def smaller(facts: ItemFacts) -> ItemFacts:
        experts = None if facts.experts is None else facts.experts.of_rows(old)
        return replace(facts, is_cold=facts.is_cold[old], dense=facts.dense.rows(old), experts=experts)

    before, _ = setting(name, smaller, trie, beams=beams)
    # Histories with new items can't be asked of the smaller catalogue, where the others have other rows.
    prompts = [prompt for prompt, items in zip(prompts, HISTORIES, strict=True) if not set(items) & set(NEW)]
    assert len(prompts) == 3

    def renamed(prompt: Prompt) -> Prompt:
        """With the rows of the smaller catalogue."""
        return Prompt(
            prompt, np.searchsorted(old, prompt.history), None, lambda items: renamed(prompt.after(old[items].tolist()))
        )

    expected = before.rank([*map(renamed, prompts)], 6)
    ranking = grown.rank(prompts, 6, [Filter(allowed=old)] * 3)
    np.testing.assert_array_equal(ranking.items, np.where(expected.items >= 0, old[expected.items], -1))
    np.testing.assert_allclose(ranking.scores, expected.scores, atol=SCORES)


@pytest.mark.parametrize("name", RANK_NEW)
def test_other_requests_filters_do_not_matter(setting, name) -> None:
    """Requests of which one may have new items only, another nothing, and another all."""
    method, prompts = setting(name, beams=4, quota_prefix=1)
    filters = [Filter(excluded=np.array([0, 5])), Filter(allowed=np.array(NEW)), Filter(np.empty(0, int)), Filter()]
    together = method.rank(prompts, 5, filters)
    for row, prompt in enumerate(prompts):
        alone = method.rank([prompt], 5, [filters[row]])
        np.testing.assert_array_equal(together.items[row], alone.items[0])
        np.testing.assert_allclose(together.scores[row], alone.scores[0], atol=SCORES)
    assert set(together.items[1][together.items[1] >= 0].tolist()) & set(NEW)
    assert set(together.items[1].tolist()) <= {*NEW, -1}
    assert (together.items[2] == -1).all()
    assert np.isneginf(together.scores[2]).all()


@pytest.mark.parametrize("name", METHODS)
def test_more_answers_than_items_are_padded(setting, name) -> None:
    method, prompts = setting(name)
    ranking = method.rank(prompts, 23)
    assert ranking.items.shape == ranking.scores.shape == (4, 23)
    assert (ranking.items[:, 20:] == -1).all()
    assert np.isneginf(ranking.scores[:, 20:]).all()


@pytest.mark.parametrize("name", RANK_NEW)
def test_catalogues_of_which_all_or_none_is_new(setting, name) -> None:
    method, prompts = setting(name, lambda facts: replace(facts, is_cold=np.zeros(20, bool)))
    assert (np.sort(method.rank(prompts, 20).items, axis=1) == np.arange(20)).all()
    if name != "quota":  # whose beams are of trained items
        method, prompts = setting(name, lambda facts: replace(facts, is_cold=np.ones(20, bool)))
        assert (np.sort(method.rank(prompts, 20).items, axis=1) == np.arange(20)).all()


@pytest.mark.parametrize("name", METHODS)
def test_requests_in_words_are_ranked_too(shop, setting, name) -> None:
    method, _ = setting(name)
    words = [ItemRanker(shop.renderer, method.search, 160).prompt_ids(query="hand balm")]
    ranking = method.rank(words, 5)
    assert (ranking.items >= 0).all()
    assert np.isfinite(ranking.scores).all()


@pytest.mark.parametrize("name", METHODS)
def test_no_requests_no_answers(setting, name) -> None:
    method, _ = setting(name)
    assert method.rank([], 5).items.shape == (0, 5)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "experts"])
def test_scores_that_are_not_numbers_are_refused(shop, setting, name) -> None:
    method, prompts = setting(name)
    with torch.no_grad():
        method.search.model.get_input_embeddings().weight[int(prompts[0][0])] = torch.nan
    with pytest.raises(NotNumbersError, match="are not numbers"):
        method.rank(prompts, 5)


def test_a_head_that_is_not_a_number_is_refused(setting) -> None:
    method, prompts = setting("dense")
    with torch.no_grad():
        method.dense.head.query.bias[0] = torch.nan
    with pytest.raises(NotNumbersError, match="the ranking's scores are not numbers"):
        method.rank(prompts, 5)
