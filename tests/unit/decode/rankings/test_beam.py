"""The beams alone."""

import numpy as np
from tolerances import SCORES


def test_scores_are_those_of_the_semantic_ids(method_of, prompts, code_scores, best_first):
    ranking = method_of("beam").rank(prompts, 20)
    expected = code_scores.sum(axis=2)
    np.testing.assert_allclose(ranking.scores, np.take_along_axis(expected, ranking.items, axis=1), atol=SCORES)
    assert (np.sort(ranking.items, axis=1) == np.arange(20)).all()


def test_it_is_the_search(method_of, prompts):
    method = method_of("beam", beams=3)
    mine, searched = method.rank(prompts, 2), method.search.search(prompts, 2)
    np.testing.assert_array_equal(mine.items, searched.items)
    np.testing.assert_array_equal(mine.scores, searched.scores)
    assert (mine.width, mine.beams, mine.invalid) == (searched.width, searched.beams, searched.invalid)
    assert mine.width == 3
