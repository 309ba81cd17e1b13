"""The dense head alone."""

import numpy as np
import pytest
from tolerances import DENSE

from llmrec.decode.generate import GenerateSearch
from llmrec.decode.ranker import make_ranking


@pytest.mark.parametrize("beams", [1, 20])
def test_all_items_by_the_dense_head(method_of, prompts, dense_scores, best_first, beams):
    ranking = method_of("dense", beams=beams).rank(prompts, 20)
    for items, scores, own in zip(ranking.items, ranking.scores, dense_scores, strict=True):
        assert items.tolist() == best_first(own)
        np.testing.assert_allclose(scores, own[items], atol=DENSE)


def test_the_first_are_the_first(method_of, prompts, dense_scores, best_first):
    ranking = method_of("dense").rank(prompts, 4)
    assert ranking.items.tolist() == [best_first(own)[:4] for own in dense_scores]


def test_a_model_without_tree_masks_ranks_so_too(deep, facts, method_of, prompts):
    tree = method_of("dense")
    search = GenerateSearch(deep.model, deep.vocabulary, deep.trie, tree.config)
    plain = make_ranking(search, facts, tree.config, "dense").rank(prompts, 20)
    ranking = tree.rank(prompts, 20)
    np.testing.assert_array_equal(plain.items, ranking.items)
    np.testing.assert_allclose(plain.scores, ranking.scores, atol=DENSE)
