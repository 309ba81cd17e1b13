"""Two rankings merged under a quota, against counts by hand and against a loop."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.decode.rankings.hybrid import interleave


def one(first, second, epsilon, k):
    """The merged list of one request."""
    return interleave(np.array([first]), np.array([second]), epsilon, k)[0].tolist()


def test_every_third_slot_is_the_seconds():
    assert one([0, 1, 2, 3, 4, 5], [10, 11, 12], 1 / 3, 8) == [0, 1, 10, 2, 3, 11, 4, 5]


def test_a_share_that_is_no_fraction_of_one_item_spreads():
    # Slots 4, 7 and 10 of ten: floor(.3 s) rises there.
    assert one(range(10), range(10, 20), 0.3, 10) == [0, 1, 2, 10, 3, 4, 11, 5, 6, 12]


@pytest.mark.parametrize(("epsilon", "expected"), [(0.0, [0, 1, 2, 10]), (1.0, [10, 11, 0, 1])])
def test_no_share_and_the_whole(epsilon, expected):
    assert one([0, 1, 2], [10, 11], epsilon, 4) == expected


def test_when_one_runs_out_the_other_fills():
    assert one([0, -1, -1], [10, 11, 12], 0.5, 4) == [0, 10, 11, 12]
    assert one([0, 1, 2, 3], [10, -1], 0.5, 6) == [0, 10, 1, 2, 3, -1]
    assert one([-1], [-1], 0.5, 2) == [-1, -1]


def test_lists_without_room_for_anything():
    assert interleave(np.empty((2, 0), int), np.array([[7], [8]]), 0.1, 2).tolist() == [[7, -1], [8, -1]]


@pytest.mark.parametrize("share", [0.1, 0.29, 0.3, 0.7])
def test_prefixes_hold_the_share_exactly(share):
    merged = np.array(one(range(1000), range(1000, 2000), share, 1000))
    held = np.cumsum(merged >= 1000)
    assert held.tolist() == [int(round(100 * share) * s // 100) for s in range(1, 1001)]


@given(st.data(), st.fractions(0, 1, max_denominator=20), st.integers(0, 12))
def test_as_a_loop_over_the_slots_has_it(data, share, k):
    firsts, seconds = (data.draw(st.lists(st.integers(0, 6), min_size=3, max_size=3)) for _ in range(2))
    first, second = np.full((3, 6), -1), np.full((3, 6), -1)
    for row in range(3):
        first[row, : firsts[row]] = np.arange(firsts[row])
        second[row, : seconds[row]] = 10 + np.arange(seconds[row])
    merged = interleave(first, second, float(share), k)
    for row in range(3):
        mine, theirs, expected = list(range(firsts[row])), [10 + at for at in range(seconds[row])], []
        for slot in range(1, k + 1):
            turn = math.floor(share * slot) > math.floor(share * (slot - 1))
            source = (theirs or mine) if turn else (mine or theirs)
            expected.append(source.pop(0) if source else -1)
        assert merged[row].tolist() == expected


@pytest.mark.parametrize(("rows", "share"), [(1, -0.1), (1, 1.1), (2, 0.5)])
def test_what_cannot_be_interleaved(rows, share):
    with pytest.raises(ValueError, match="to interleave"):
        interleave(np.zeros((1, 1), int), np.zeros((rows, 1), int), share, 3)
