from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.errors import UserError
from llmrec.quantize.collisions import _assign, collision_groups, excess, nearest_free_code


class Grid:
    """Codes are coordinates of points: level l has `sizes[l]` places, and a tuple stands for its point."""

    def __init__(self, sizes: list[int]) -> None:
        self.level_sizes = sizes

    def encode(self, x: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(x), 0, np.array(self.level_sizes) - 1).astype(np.int32)

    def last_level_costs(self, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
        before = ((x[:, :-1] - codes) ** 2).sum(axis=1)
        return (before[:, None] + (x[:, -1:] - np.arange(self.level_sizes[-1])) ** 2).astype(np.float32)

    def cost(self, x: np.ndarray, codes: np.ndarray) -> float:
        return float(((x - codes) ** 2).sum())


def test_by_hand():
    """Of three items on code 1 the nearest stays; the others go up and down, each to its side."""
    x = np.array([[0, 1.4], [0, 1.0], [0, 0.6], [1, 1.0], [0, 3.0]])
    grid = Grid([2, 4])
    codes = grid.encode(x)
    assert codes[:, 1].tolist() == [1, 1, 1, 1, 3]
    assert nearest_free_code(codes, grid, x)[:, 1].tolist() == [2, 1, 0, 1, 3]


def test_what_a_prefix_cannot_hold_goes_to_the_nearest_other():
    """Three items on prefix 1 of two last codes: one leaves. (0, 0) costs it 1.44, (2, 1) .64 + 1; (2, 0) is taken."""
    x = np.array([[1.2, 0.0], [1.2, 0.0], [1.2, 0.0], [2.0, 0.0]])
    grid = Grid([4, 2])
    found = nearest_free_code(grid.encode(x), grid, x)
    assert sorted(found[:3].tolist()) == [[0, 0], [1, 0], [1, 1]]
    assert found[3].tolist() == [2, 0]


@pytest.mark.parametrize("sizes", [[12], [3, 4], [2, 3, 2], [2, 2, 3], [2, 1, 2, 3]])
@pytest.mark.parametrize("kind", ["equal", "spread", "crowded"])
def test_as_many_items_as_tuples_fill_them_all(sizes, kind):
    rng = np.random.default_rng(0)
    spread = {"equal": 0.0, "spread": 3.0, "crowded": 0.7}[kind]
    x = rng.normal(size=(12, len(sizes))) * spread
    grid = Grid(sizes)
    found = nearest_free_code(grid.encode(x), grid, x)
    assert excess(found) == 0
    assert (found >= 0).all()
    assert (found < sizes).all()


def test_more_items_than_tuples():
    x = np.zeros((13, 2))
    grid = Grid([3, 4])
    with pytest.raises(UserError, match=r"tokenize.collisions nearest-free: 13 items, but only 12 tuples of codes"):
        nearest_free_code(grid.encode(x), grid, x)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000), st.sampled_from([[4, 12], [2, 4, 6], [64]]))
def test_unique_deterministic_and_nobody_alone_moves(n, seed, sizes):
    x = np.random.default_rng(seed).uniform(-1, 5, size=(n, len(sizes)))
    grid = Grid(sizes)
    codes = grid.encode(x)
    found = nearest_free_code(codes, grid, x)
    assert excess(found) == 0
    np.testing.assert_array_equal(found, nearest_free_code(codes, grid, x))
    group, group_sizes = collision_groups(codes)
    alone = group_sizes[group] == 1
    np.testing.assert_array_equal(found[alone], codes[alone])
    # one item of every group stays where it was, and none is nearer to that place
    for number in np.flatnonzero(group_sizes > 1):
        rows = np.flatnonzero(group == number)
        stays = [row for row in rows if (found[row] == codes[row]).all()]
        assert len(stays) == 1
        costs = [grid.cost(x[row], codes[row]) for row in rows]
        assert grid.cost(x[stays[0]], codes[stays[0]]) == pytest.approx(min(costs))


@given(st.integers(0, 1000))
def test_no_other_choice_of_free_codes_costs_less(seed):
    rng = np.random.default_rng(seed)
    costs = rng.random((4, 6)).astype(np.float32)
    own, free = np.array([1, 1, 1, 4]), np.array([0, 2, 3])
    new = _assign(costs, own, free)
    keeper = int(costs[:3, 1].argmin())
    assert (new[keeper], new[3]) == (1, 4)
    movers = [row for row in range(3) if row != keeper]
    best = min(costs[movers[0], a] + costs[movers[1], b] for a, b in permutations(free, 2))
    assert costs[movers, new[movers]].sum() == pytest.approx(best)


def test_the_last_two_levels_are_searched_exhaustively():
    """One item too many under a full prefix takes the nearest of all free tuples that share what is before."""
    rng = np.random.default_rng(1)
    grid = Grid([2, 3, 2])
    x = np.column_stack([np.zeros(4), rng.uniform(0, 2, 4), rng.uniform(0, 1, 4)])
    codes = np.array([[0, 1, 0], [0, 1, 1], [0, 1, 1], [0, 2, 0]], np.int32)
    found = nearest_free_code(codes, grid, x)
    moved = int(np.flatnonzero((found != codes).any(axis=1))[0])
    taken = {tuple(row) for row in np.delete(found, moved, axis=0).tolist()}
    free = [(0, a, b) for a in range(3) for b in range(2) if (0, a, b) not in taken]
    assert tuple(found[moved]) == min(free, key=lambda point: grid.cost(x[moved], np.array(point)))
