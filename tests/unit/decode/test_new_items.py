"""Items without training events in the trie: they get scores, and change nobody else's."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import SCORES, SUMS

from llmrec.decode.config import DecodeConfig
from llmrec.decode.exact import ExactSearch
from llmrec.decode.filters import Filter
from llmrec.decode.tree import TreeSearch
from llmrec.index.trie import ItemTrie

PROMPTS = [[5, 9, 11], [7], [3, 4, 5, 6, 7, 8]]


def search_of(deep, kind=TreeSearch, new=None, trie=None, beams=5, scoring="catalogue"):
    config = DecodeConfig(dtype="float32", scoring=scoring, beams=beams)
    return kind(deep.model, deep.vocabulary, trie or deep.trie, config, is_cold=new)


@pytest.mark.parametrize("beams", [1, 3, 20])
@pytest.mark.parametrize("kind", [TreeSearch, ExactSearch])
def test_old_items_rank_as_without_the_new_ones(deep, new_items, kind, beams):
    """Under a filter to the old ones, whatever is pruned."""
    old = np.flatnonzero(~new_items)
    before = search_of(deep, kind, trie=ItemTrie.build(deep.codes[old], deep.trie.level_sizes), beams=beams)
    after = search_of(deep, kind, new=new_items, beams=beams)
    expected = before.search(PROMPTS, 3)
    ranking = after.search(PROMPTS, 3, [Filter(allowed=old)] * 3)
    np.testing.assert_array_equal(ranking.items, old[expected.items])
    np.testing.assert_allclose(ranking.scores, expected.scores, rtol=0, atol=SUMS)


def test_without_being_told_they_would(deep, new_items):
    old = np.flatnonzero(~new_items)
    told, untold = search_of(deep, new=new_items, beams=20), search_of(deep, beams=20)
    scores = [search.search(PROMPTS, 20, [Filter(allowed=old)] * 3).scores for search in (told, untold)]
    assert (scores[0][:, : len(old)] > scores[1][:, : len(old)]).any()


def test_each_old_score_is_the_same_one_by_one(deep, new_items):
    old = np.flatnonzero(~new_items)
    before = search_of(deep, trie=ItemTrie.build(deep.codes[old], deep.trie.level_sizes))
    after = search_of(deep, new=new_items)
    expected = before.code_scores(before.prefill(PROMPTS), np.tile(np.arange(len(old)), (3, 1)))
    found = after.code_scores(after.prefill(PROMPTS), np.tile(old, (3, 1)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=SUMS)


@pytest.mark.parametrize("with_offsets", [False, True])
def test_exact_search_equals_exhaustive_scoring(deep, new_items, exhaustive, with_offsets):
    offsets = np.random.default_rng(0).normal(size=20).astype(np.float32) if with_offsets else None
    expected = exhaustive(deep, PROMPTS, "catalogue", new_items).sum(axis=2)
    expected = expected + (0 if offsets is None else offsets)
    ranking = search_of(deep, ExactSearch, new_items, beams=2).search(PROMPTS, 20, offsets=offsets)
    for items, scores, own in zip(ranking.items, ranking.scores, expected, strict=True):
        assert sorted(items.tolist()) == list(range(20))
        np.testing.assert_allclose(scores, own[items], atol=SCORES)
        np.testing.assert_allclose(scores, np.sort(own)[::-1], atol=SCORES)
    few = search_of(deep, ExactSearch, new_items, beams=2).search(PROMPTS, 4, offsets=offsets)
    np.testing.assert_allclose(few.scores, ranking.scores[:, :4], atol=SUMS)


def test_as_many_beams_as_items_equal_exhaustive_scoring(deep, new_items, exhaustive):
    expected = exhaustive(deep, PROMPTS, "catalogue", new_items).sum(axis=2)
    ranking = search_of(deep, new=new_items, beams=20).search(PROMPTS, 20)
    np.testing.assert_allclose(ranking.scores, np.take_along_axis(expected, ranking.items, axis=1), atol=SCORES)
    assert set(np.flatnonzero(new_items)) <= set(ranking.items[0].tolist())


@given(st.lists(st.booleans(), min_size=20, max_size=20).map(np.array))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_new_old_items_share_the_whole_and_nothing_is_above_it(deep, new):
    search = search_of(deep, new=new)
    scores = search.code_scores(search.prefill(PROMPTS[:1]), np.arange(20)[None])[0]
    assert (scores <= 0).all()
    assert np.isfinite(scores).all()
    sharing = np.flatnonzero(~new) if not new.all() else np.arange(20)
    among = sharing[np.unique(deep.codes[sharing], axis=0, return_index=True)[1]]
    assert np.exp(scores[among].sum(axis=1)).sum() == pytest.approx(1, abs=SCORES)


@pytest.mark.parametrize("new", [np.zeros(20, bool), np.ones(20, bool)], ids=["none", "all"])
def test_where_none_or_all_are_new_nothing_changes(deep, new):
    plain, told = search_of(deep).search(PROMPTS, 20), search_of(deep, new=new).search(PROMPTS, 20)
    np.testing.assert_array_equal(plain.items, told.items)
    np.testing.assert_allclose(plain.scores, told.scores, rtol=0, atol=SUMS)


@pytest.mark.parametrize("scoring", ["vocab", "level"])
def test_other_scorings_are_the_same_for_all(deep, new_items, scoring):
    plain, told = (search_of(deep, new=new, scoring=scoring).search(PROMPTS, 20) for new in (None, new_items))
    np.testing.assert_array_equal(plain.items, told.items)
    np.testing.assert_array_equal(plain.scores, told.scores)
