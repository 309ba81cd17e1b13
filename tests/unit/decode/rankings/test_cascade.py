"""First codes by the beams, items inside them by the head: COBRA's BeamFusion by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tolerances import DENSE

from llmrec.decode.filters import Filter
from llmrec.decode.ranker import make_ranking
from llmrec.decode.tree import TreeSearch
from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie


def by_hand(deep, facts, prompts, code_scores, hidden_after, width) -> np.ndarray:
    """[4, 20]: .9 of the code's log-probability and 16 times the cosine, each through a softmax of its own."""
    scores = np.full((4, 20), -np.inf)
    firsts = deep.codes[:, 0]
    for row, prompt in enumerate(prompts):
        own = {code: code_scores[row, firsts == code, 0][0] for code in range(4)}
        beams = sorted(own, key=lambda code: -own[code])[:width]
        total = np.log(sum(np.exp(0.9 * own[code]) for code in beams))
        for code in beams:
            inside = np.flatnonzero(firsts == code)
            query = facts.dense.head.query(hidden_after(deep, prompt, [code])).double()
            cosines = 16 * (facts.dense.vectors[inside].double() @ query / query.norm()).numpy()
            trained = ~facts.is_cold[inside] if not facts.is_cold[inside].all() else np.ones(len(inside), bool)
            scores[row, inside] = 0.9 * own[code] - total + cosines - np.log(np.exp(cosines[trained]).sum())
    return scores


@pytest.mark.parametrize("beams", [1, 2, 20])
def test_beam_fusion_by_hand(deep, facts, method_of, prompts, code_scores, hidden_after, best_first, beams):
    ranking = method_of("cascade", beams=beams).rank(prompts, 20)
    with torch.no_grad():
        expected = by_hand(deep, facts, prompts, code_scores, hidden_after, min(beams, 4))
    for items, scores, own in zip(ranking.items, ranking.scores, expected, strict=True):
        reached = int(np.isfinite(own).sum())
        assert items[:reached].tolist() == best_first(own)[:reached]
        assert (items[reached:] == -1).all()
        np.testing.assert_allclose(scores[:reached], own[items[:reached]], atol=DENSE)
    firsts = {code: facts.is_cold[deep.codes[:, 0] == code].all() for code in range(4)}
    assert firsts == {0: False, 1: False, 2: False, 3: True}


def test_beams_go_where_a_filter_lets_something_through(deep, method_of, prompts):
    """One beam, and its first code is that of the only item that may come out."""
    for item in (0, 4, 5):
        allowed = np.flatnonzero(deep.codes[:, 0] == deep.codes[item, 0])[:2]
        ranking = method_of("cascade", beams=1).rank(prompts, 3, [Filter(allowed=allowed)] * 4)
        assert (np.sort(ranking.items[:, :2], axis=1) == allowed).all()
        assert (ranking.items[:, 2] == -1).all()


def test_a_filter_over_several_codes_keeps_the_order(method_of, prompts):
    method = method_of("cascade")
    whole = method.rank(prompts, 20)
    wanted = np.array([1, 8, 12, 14, 15])
    few = method.rank(prompts, 20, [Filter(allowed=wanted)] * 4)
    for row in range(4):
        assert few.items[row, :5].tolist() == [item for item in whole.items[row] if item in wanted]
        assert (few.items[row, 5:] == -1).all()


def test_semantic_ids_of_one_code_are_refused(shop, facts, method_of):
    """There is no code after the first to go on to."""
    vocabulary = replace(shop.vocabulary, names=shop.vocabulary.names[:1], ids=shop.vocabulary.ids[:1])
    trie = ItemTrie.build(np.arange(20)[:, None] % 4, [4])
    search = TreeSearch(shop.model, vocabulary, trie, method_of("beam").config)
    with pytest.raises(UserError, match=r"decode\.ranking cascade goes on from an item's first code"):
        make_ranking(search, facts, search.config, "cascade")
