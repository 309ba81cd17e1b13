"""One prompt asked about many things: codes of given items and best prefixes, against plain forward passes."""

from itertools import permutations

import numpy as np
import pytest
import torch
from tolerances import SCORES, SUMS

from llmrec.decode.config import DecodeConfig
from llmrec.decode.exact import ExactSearch
from llmrec.decode.filters import Filter
from llmrec.decode.tree import TreeSearch

SHARED = list(range(5, 27))
PROMPTS = [[5, 9, 11], [7], [3, 4, 5, 6, 7, 8], [40, 41]]
LONG = [[*SHARED, 3], [*SHARED, 9, 8, 7], SHARED, [*SHARED, 30, 31]]


def search_of(deep, scoring, new=None, kind=TreeSearch, **settings) -> TreeSearch:
    config = DecodeConfig(**{"dtype": "float32", "scoring": scoring, "beams": 5, **settings})
    return kind(deep.model, deep.vocabulary, deep.trie, config, is_cold=new)


def wanted(rows=4) -> np.ndarray:
    """Items with repetitions, in no order, and gaps; the second prompt is asked about none, the third about one."""
    items = np.random.default_rng(1).integers(-1, 20, (rows, 30))
    items[1] = -1
    items[2, 1:] = -1
    items[2, 0] = 13
    return items


@pytest.mark.parametrize("prompts", [PROMPTS, LONG], ids=["apart", "with a shared start"])
@pytest.mark.parametrize("with_new", [False, True], ids=["none new", "some new"])
@pytest.mark.parametrize("scoring", ["vocab", "level", "catalogue"])
def test_codes_of_items_are_scored_as_the_plain_model_has_them(deep, new_items, exhaustive, scoring, with_new, prompts):
    new = new_items if with_new else None
    search, items = search_of(deep, scoring, new), wanted()
    given = search.code_scores(search.prefill(prompts), items)
    assert (given.dtype, given.shape) == (np.float32, (4, 30, 3))
    expected = exhaustive(deep, prompts, scoring, new)
    expected = np.where((items >= 0)[..., None], expected[np.arange(4)[:, None], items], 0)
    np.testing.assert_allclose(given, expected, atol=SCORES)
    assert not given[1].any()


def test_items_in_other_orders_and_numbers_have_the_same_scores(deep, new_items):
    search = search_of(deep, "catalogue", new_items)
    everything = np.tile(np.arange(20), (4, 1))
    whole = search.code_scores(search.prefill(PROMPTS), everything)
    for items in (everything[:, ::-1].copy(), everything[:, 3:4], everything[:, [7, 7, 2]]):
        given = search.code_scores(search.prefill(PROMPTS), items)
        np.testing.assert_allclose(given, whole[np.arange(4)[:, None], items], atol=SUMS)


def test_no_items_no_scores(deep):
    search = search_of(deep, "catalogue")
    prefilled = search.prefill(PROMPTS)
    assert search.code_scores(prefilled, np.empty((4, 0), np.int64)).shape == (4, 0, 3)
    assert not search.code_scores(prefilled, np.full((4, 2), -1)).any()


def test_beams_and_codes_have_the_same_scores(deep, new_items):
    """What the beams say of an item is the sum of what is said of its codes."""
    search = search_of(deep, "catalogue", new_items)
    prefilled = search.prefill(PROMPTS)
    ranking = search.rank(prefilled, 7)
    assert (ranking.items >= 0).all()
    np.testing.assert_allclose(search.code_scores(prefilled, ranking.items).sum(axis=2), ranking.scores, atol=SUMS)


def test_questions_do_not_disturb_each_other(deep, new_items):
    filters = [Filter(excluded=np.array([1, 5])), Filter(allowed=np.array([2, 9])), Filter(), Filter()]
    questions = [
        lambda search, prefilled: search.code_scores(prefilled, wanted()),
        lambda search, prefilled: search.rank(prefilled, 9, beams=9).scores,
        lambda search, prefilled: search.rank(prefilled, 3, filters, beams=2).items,
        lambda search, prefilled: search.prefixes(prefilled, 2, 4)[1].numpy(),
        lambda search, prefilled: prefilled.hidden.numpy(),
    ]
    search = search_of(deep, "catalogue", new_items)
    alone = [question(search, search.prefill(PROMPTS)) for question in questions]
    for order in list(permutations(range(5)))[::17]:
        prefilled = search.prefill(PROMPTS)
        for number in (*order, *order[:2]):
            np.testing.assert_allclose(questions[number](search, prefilled), alone[number], atol=SUMS)


def test_hidden_states_of_the_prompts(deep, hidden_after):
    for prompts in (PROMPTS, LONG):
        prefilled = search_of(deep, "catalogue").prefill(prompts)
        expected = torch.stack([hidden_after(deep, prompt) for prompt in prompts])
        torch.testing.assert_close(prefilled.hidden, expected, rtol=0, atol=SCORES)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("scoring", ["vocab", "level", "catalogue"])
def test_first_codes_by_hand(deep, new_items, exhaustive, hidden_after, scoring, width):
    search = search_of(deep, scoring, new_items)
    beams, hidden = search.prefixes(search.prefill(PROMPTS), 1, width)
    assert beams.nodes.shape == (4, width)
    expected = exhaustive(deep, PROMPTS, scoring, new_items)[:, :, 0]
    for row, prompt in enumerate(PROMPTS):
        by_code = {int(code): expected[row, item] for item, code in enumerate(deep.codes[:, 0])}
        best = sorted(by_code, key=lambda code: -by_code[code])[:width]
        assert beams.codes[row].tolist() == best
        assert beams.nodes[row].tolist() == best, "all four first codes are there"
        np.testing.assert_allclose(beams.scores[row], [by_code[code] for code in best], atol=SCORES)
        for place, code in enumerate(best):
            if scoring == "catalogue" and code == 3:
                continue  # only one item goes on from it, so that nothing is run
            torch.testing.assert_close(hidden[row, place], hidden_after(deep, prompt, [code]), rtol=0, atol=SCORES)


def test_prefixes_of_two_codes_by_hand(deep, new_items, exhaustive, hidden_after):
    search = search_of(deep, "vocab", new_items)
    beams, hidden = search.prefixes(search.prefill(PROMPTS), 2, 16)
    scores = exhaustive(deep, PROMPTS, "vocab")[:, :, :2].sum(axis=2)
    paths = {tuple(codes[:2]): item for item, codes in enumerate(deep.codes.tolist())}
    for row, prompt in enumerate(PROMPTS):
        best = sorted(paths, key=lambda path: -scores[row, paths[path]])
        alive = beams.nodes[row] >= 0
        found = [sorted(paths)[node] for node in beams.nodes[row][alive].tolist()]
        assert found == best
        np.testing.assert_allclose(beams.scores[row][alive], [scores[row, paths[path]] for path in best], atol=SCORES)
        expected = torch.stack([hidden_after(deep, prompt, path) for path in best])
        torch.testing.assert_close(hidden[row][alive], expected, rtol=0, atol=SCORES)


def test_the_exact_search_scores_codes_too(deep, new_items):
    tree, exact = (search_of(deep, "catalogue", new_items, kind) for kind in (TreeSearch, ExactSearch))
    given = [search.code_scores(search.prefill(PROMPTS), wanted()) for search in (tree, exact)]
    np.testing.assert_allclose(*given, atol=SUMS)
