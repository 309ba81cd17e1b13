"""Lists that are generated in one go, against every ordered list of two or three items, scored the slow way."""

from itertools import permutations

import numpy as np
import pytest
from tolerances import SCORES

from llmrec.decode.filters import Filter, Quota
from llmrec.decode.ranker import ItemRanker
from llmrec.decode.search import Prompt

HISTORIES = [[0, 5, 7], [11], [2, 4, 6, 8]]
ALLOWED = [1, 3, 5, 9, 14]


@pytest.fixture
def scored(deep, facts, exhaustive):
    """`scored(history, items)`: the log-probability of each ordered list of so many of ALLOWED, by plain passes."""

    def score(history: list[int], size: int) -> dict[tuple[int, ...], float]:
        begun = [begin for length in range(size) for begin in permutations(ALLOWED, length)]
        shown = [deep.renderer.history([*history, *begin]) for begin in begun]
        prompts = deep.renderer.encode_prompts([deep.renderer.prompt("sequential", 0, history=each) for each in shown])
        scores = exhaustive(deep, prompts, "catalogue", facts.is_cold).sum(axis=2)
        after = dict(zip(begun, scores, strict=True))
        return {items: sum(after[items[:at]][items[at]] for at in range(size)) for items in permutations(ALLOWED, size)}

    return score


def asked(deep, method, filters: Filter, k: int):
    prompts = [ItemRanker(deep.renderer, method.search, 160).prompt_ids(history) for history in HISTORIES]
    return prompts, method.rank(prompts, k, [filters] * len(prompts))


@pytest.mark.parametrize("size", [2, 3])
def test_the_best_of_all_ordered_lists_comes_first(deep, method_of, scored, size):
    """As many lists as there are beginnings: nothing is pruned. A prompt shows four items: the last one slides."""
    method, own = method_of("session", session=size, session_lists=20), Filter(allowed=np.array(ALLOWED))
    prompts, ranking = asked(deep, method, own, 5)
    first = method.search.search(prompts, 20, [own] * 3)
    for row, lists in enumerate(method.sessions(prompts, first, [own] * 3, None)):
        expected = scored(HISTORIES[row], size)
        best = sorted(expected, key=lambda items: -expected[items])
        assert ranking.items[row, :size].tolist() == list(best[0]) == lists[0][1]
        for score, items in lists:
            assert score == pytest.approx(expected[tuple(items)], abs=SCORES)
        assert [score for score, _ in lists] == pytest.approx([expected[items] for items in best[:20]], abs=SCORES)


def test_one_list_is_greedy(deep, method_of, scored):
    method = method_of("session", session=2, session_lists=1)
    _, ranking = asked(deep, method, Filter(allowed=np.array(ALLOWED)), 2)
    for row, history in enumerate(HISTORIES):
        taken: tuple[int, ...] = ()
        for size in (1, 2):
            expected = scored(history, size)
            taken = max((items for items in expected if items[:-1] == taken), key=lambda items: expected[items])
        assert ranking.items[row].tolist() == list(taken)


def test_the_other_items_follow_in_the_order_of_the_beams(deep, method_of):
    method = method_of("session", session=2)
    prompts, ranking = asked(deep, method, Filter(), 9)
    beams = method.search.search(prompts, 20)
    for row in range(len(prompts)):
        begun = ranking.items[row, :2].tolist()
        rest = [item for item in beams.items[row].tolist() if item not in begun]
        assert ranking.items[row, 2:].tolist() == rest[:7]


def test_a_list_ends_where_no_item_is_left(deep, method_of):
    method = method_of("session", session=4)
    _, ranking = asked(deep, method, Filter(allowed=np.array([3, 9])), 5)
    assert (np.sort(ranking.items, axis=1) == [-1, -1, -1, 3, 9]).all()
    assert (ranking.items[:, 2:] == -1).all()


def test_a_request_in_words_goes_on_with_the_items_as_history(deep, method_of):
    method = method_of("session", session=2, session_lists=1)
    ranker = ItemRanker(deep.renderer, method.search, 160, method)
    ranking = ranker.rank([ranker.prompt_ids(query="hand balm")], 2)
    first = method.search.search([ranker.prompt_ids(query="hand balm")], 1).items[0, 0]
    second = method.search.search([ranker.prompt_ids([first], "hand balm")], 1, [Filter(excluded=np.array([first]))])
    assert ranking.items[0].tolist() == [first, second.items[0, 0]]


def test_a_limit_keeps_the_order(deep, method_of):
    """One item of a group: the second item is passed over, and a further search fills the list at its end."""
    method = method_of("session", session=2, beams=3)
    ranker = ItemRanker(deep.renderer, method.search, 160, method)
    prompt = ranker.prompt_ids(HISTORIES[0])
    first, second, third = method.rank([prompt], 3).items[0].tolist()
    groups = np.full(20, -1)
    groups[[first, second]] = 0
    items, scores = ranker.best([prompt], 3, np.ones(20, bool), [Quota(groups, 1)])
    more = method.rank([prompt], 3, [Filter(excluded=np.array([first, second, third]))]).items[0, 0]
    assert items.tolist() == [first, third, more]
    assert (np.diff(scores) < 0).all()


def test_prompts_that_nobody_can_continue(method_of):
    method = method_of("session")
    with pytest.raises(ValueError, match="prompts that an ItemRanker wrote"):
        method.rank([Prompt([5, 9])], 3)
