"""A share of every list for new items that begin as a beam does: by hand and by a loop."""

import math

import numpy as np
import pytest

from llmrec.decode.filters import Filter
from llmrec.errors import UserError


def slow(beams, codes, new, length, share, k, allowed):
    """One list: `beams` are trained items, best first."""
    prefixes = [tuple(codes[item, :length]) for item in beams]
    waiting = []
    for prefix in dict.fromkeys(prefixes):
        waiting += [item for item in np.flatnonzero(new) if tuple(codes[item, :length]) == prefix and allowed[item]]
    waiting, left, found = waiting[:k], list(beams), []
    for slot in range(1, k + 1):
        turn = math.floor(share * slot + 1e-9) > math.floor(share * (slot - 1) + 1e-9)
        source = (waiting or left) if turn else (left or waiting)
        found.append(int(source.pop(0)) if source else -1)
    return found


@pytest.mark.parametrize("prefix", [0, 1, 2, 3])
@pytest.mark.parametrize("share", [0.1, 0.34, 0.5, 1.0])
@pytest.mark.parametrize("beams", [2, 20])
def test_as_a_loop_has_it(deep, facts, method_of, prompts, prefix, share, beams):
    method = method_of("quota", beams=beams, quota=share, quota_prefix=prefix)
    gone = np.array([[2, 3], [4, 5], [6, 7], [8, 9]])
    filters = [Filter(excluded=row) for row in gone]
    warm = [Filter(excluded=np.union1d(row, np.flatnonzero(facts.is_cold))) for row in gone]
    found = method.search.search(prompts, max(5, beams), warm).items
    ranking = method.rank(prompts, 5, filters)
    for row, items in enumerate(ranking.items):
        allowed = ~np.isin(np.arange(20), gone[row])
        mine = found[row][found[row] >= 0]
        assert items.tolist() == slow(mine, deep.codes, facts.is_cold, prefix or 2, share, 5, allowed)


@pytest.mark.parametrize("share", [0.2, 0.25, 0.5])
def test_every_prefix_of_a_list_holds_its_share(facts, method_of, prompts, share):
    """With as many beams as items every first code with trained items is a beam's."""
    ranking = method_of("quota", quota=share, quota_prefix=1).rank(prompts, 10)
    under = 7  # new items whose first code trained items have too: all but the one of code 3
    held = np.cumsum(facts.is_cold[ranking.items], axis=1)
    expected = [min(under, math.floor(share * s)) for s in range(1, 11)]
    assert (held == expected).all()


def test_no_share_no_new_item(facts, method_of, prompts):
    ranking = method_of("quota", quota=0.0, quota_prefix=1).rank(prompts, 12)
    assert not facts.is_cold[ranking.items].any()
    warm = [Filter(allowed=np.flatnonzero(~facts.is_cold))] * 4
    np.testing.assert_array_equal(ranking.items, method_of("beam").rank(prompts, 12, warm).items)


def test_prefixes_of_two_codes_by_hand(deep, facts, method_of, prompts):
    """By all codes that tell content: 021, 121 and 321 begin as no, one and no trained item."""
    by_code = {"".join(map(str, codes)): item for item, codes in enumerate(deep.codes)}
    found = method_of("quota", quota=0.5).rank(prompts, 20).items
    for items in found:
        assert by_code["121"] in items
        assert by_code["021"] not in items
        assert by_code["321"] not in items
        new = {code for code, item in by_code.items() if facts.is_cold[item] and item in items}
        assert new == {"001", "032", "100", "121"}
    wider = method_of("quota", quota=0.5, quota_prefix=1).rank(prompts, 20).items
    for items in wider:
        assert by_code["021"] in items
        assert by_code["321"] not in items


def test_scores_are_minus_the_places(method_of, prompts):
    ranking = method_of("quota").rank(prompts, 20)
    for items, scores in zip(ranking.items, ranking.scores, strict=True):
        count = int((items >= 0).sum())
        assert scores.tolist() == [-float(place) for place in range(1, count + 1)] + [-np.inf] * (20 - count)


def test_longer_prefixes_than_semantic_ids_are_refused(method_of):
    with pytest.raises(
        UserError, match=r"decode\.quota_prefix 4: semantic IDs have 3 codes; expected at most"
    ) as caught:
        method_of("quota", quota_prefix=4)
    assert "\n" not in str(caught.value)
