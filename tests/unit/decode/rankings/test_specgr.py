"""Drafts of the dense head, verified by the model: the known ends, and a slow reimplementation."""

import numpy as np
import pytest
from tolerances import DENSE, SCORES

from llmrec.decode.filters import Filter
from llmrec.decode.rankings import hybrid as module


def slow(drafts, verified, beams, codes, content, threshold, draft, k, allowed):
    """One list, best first: `drafts` and `verified` are scores by item, `beams` items in their order."""
    accepted, drafted = {}, set()
    for length in range(content):
        if len(accepted) >= k:
            break
        begun = {tuple(codes[item, :length]) for item in beams}
        inside = [item for item in allowed if item not in drafted and tuple(codes[item, :length]) in begun]
        for item in sorted(inside, key=lambda item: -drafts[item])[:draft] if length or inside else []:
            drafted.add(item)
            if verified[item] > threshold:
                accepted[item] = verified[item]
    best = sorted(accepted, key=lambda item: (-round(accepted[item], 4), item))
    return (best + [item for item in beams if item not in accepted])[:k]


@pytest.fixture
def verified(facts, code_scores):
    """`verified(content)`: mean log-probability per code, of new items of the codes that tell content; [4, 20]."""

    def mean(content):
        return np.where(facts.is_cold, code_scores[:, :, :content].mean(axis=2), code_scores.mean(axis=2))

    return mean


@pytest.mark.parametrize("threshold", [-2.0, -1.3, -0.9])
@pytest.mark.parametrize(("content", "beams", "k", "draft"), [(2, 3, 4, 3), (2, 2, 6, 5), (3, 3, 7, 2), (1, 4, 3, 2)])
def test_as_a_slow_reimplementation_has_it(
    deep, method_of, prompts, dense_scores, verified, monkeypatch, threshold, content, beams, k, draft
):
    monkeypatch.setattr(module, "DRAFT", draft)
    method = method_of("specgr", content, beams=beams, specgr_threshold=threshold)
    gone = [[1, 2], [], [5, 9, 13], [0]]
    filters = [Filter(excluded=np.array(row, np.int64)) for row in gone]
    found = method.search.search(prompts, max(k, beams), filters).items
    ranking = method.rank(prompts, k, filters)
    for row in range(4):
        allowed = [item for item in range(20) if item not in gone[row]]
        mine = found[row][found[row] >= 0].tolist()
        expected = slow(
            dense_scores[row], verified(content)[row], mine, deep.codes, content, threshold, draft, k, allowed
        )
        assert ranking.items[row].tolist() == expected


def test_below_every_threshold_the_first_drafts_are_accepted(
    method_of, prompts, dense_scores, verified, best_first, monkeypatch
):
    """No second draft: the first is enough."""
    monkeypatch.setattr(module, "DRAFT", 6)
    method = method_of("specgr", specgr_threshold=-np.inf)
    ranking = method.rank(prompts, 6)
    for items, scores, drafts, own in zip(ranking.items, ranking.scores, dense_scores, verified(2), strict=True):
        accepted = best_first(drafts)[:6]
        assert sorted(items.tolist()) == sorted(accepted)
        assert items.tolist() == sorted(accepted, key=lambda item: (-round(own[item], 4), item))
        np.testing.assert_allclose(scores, own[items], atol=SCORES)


def test_fifty_at_a_time(method_of, prompts):
    """All 20 items are in the first draft, so that the list is in the order of the verification."""
    assert module.DRAFT == 50
    ranking = method_of("specgr", specgr_threshold=-np.inf).rank(prompts, 20)
    assert (np.sort(ranking.items, axis=1) == np.arange(20)).all()
    assert (ranking.scores > -module.BELOW / 2).all()


@pytest.mark.parametrize("beams", [3, 20])
def test_above_every_score_the_beams_are_left(method_of, prompts, beams):
    ranking = method_of("specgr", beams=beams, specgr_threshold=np.inf).rank(prompts, 7)
    expected = method_of("beam", beams=beams).rank(prompts, 7)
    ties = np.lexsort((expected.items, -expected.scores), axis=1)  # the first in the catalogue comes first
    np.testing.assert_array_equal(ranking.items, np.take_along_axis(expected.items, ties, axis=1))
    np.testing.assert_allclose(ranking.scores + module.BELOW, expected.scores, atol=2e-5)


def test_offsets_draw_drafts_and_move_the_accepted(method_of, prompts, verified, dense_scores, best_first, monkeypatch):
    monkeypatch.setattr(module, "DRAFT", 4)
    last = best_first(dense_scores[0])[-1]
    offsets = np.zeros(20, np.float32)
    offsets[last] = 100
    ranking = method_of("specgr", specgr_threshold=-np.inf).rank(prompts[:1], 4, offsets=offsets)
    assert ranking.items[0, 0] == last
    assert ranking.scores[0, 0] == pytest.approx(100 + verified(2)[0, last], abs=DENSE)
