"""Beams and all new items, by the dense head."""

import numpy as np
import pytest

from llmrec.decode.filters import Filter


def test_with_as_many_beams_as_items_it_is_dense_retrieval(method_of, prompts):
    liger, dense = (method_of(name).rank(prompts, 20) for name in ("liger", "dense"))
    np.testing.assert_array_equal(liger.items, dense.items)
    np.testing.assert_array_equal(liger.scores, dense.scores)


@pytest.mark.parametrize(("beams", "k"), [(1, 1), (1, 4), (6, 3)])
def test_candidates_are_the_beams_and_all_new_items(method_of, prompts, facts, dense_scores, best_first, beams, k):
    method = method_of("liger", beams=beams)
    filters = [Filter(excluded=np.array([item])) for item in range(4)]
    found = method.search.search(prompts, max(k, beams), filters).items
    ranking = method.rank(prompts, k, filters)
    for row, items in enumerate(ranking.items):
        candidate = facts.is_cold.copy()
        candidate[found[row]] = True
        candidate[row] = False
        expected = [item for item in best_first(dense_scores[row]) if candidate[item]]
        assert items.tolist() == expected[:k]


def test_with_one_beam_every_new_item_is_a_candidate(method_of, prompts, facts, dense_scores, monkeypatch):
    """The beams find one trained item, and the list is as long as all that may compete."""
    method = method_of("liger", beams=1)
    rank = method.search.rank
    monkeypatch.setattr(
        method.search, "rank", lambda prefilled, k, *args, **kwargs: rank(prefilled, 1, *args, **kwargs)
    )
    warm = [
        Filter(allowed=np.append(np.flatnonzero(facts.is_cold), trained))
        for trained in np.flatnonzero(~facts.is_cold)[:4]
    ]
    ranking = method.rank(prompts, 20, warm)
    new = set(np.flatnonzero(facts.is_cold).tolist())
    for items in ranking.items:
        found = set(items[items >= 0].tolist())
        assert new <= found
        assert len(found) <= len(new) + 1


def test_offsets_steer_both_halves(method_of, prompts, facts):
    """A trained item that no beam would find comes first with a large offset."""
    method = method_of("liger", beams=2)
    plain = method_of("beam").rank(prompts, 20)
    last = next(item for item in plain.items[0][::-1].tolist() if not facts.is_cold[item])
    offsets = np.zeros(20, np.float32)
    offsets[last] = 100
    assert method.rank(prompts[:1], 2, offsets=offsets).items[0, 0] == last
