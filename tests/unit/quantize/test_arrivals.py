"""Items that arrive later: everybody has a semantic ID of their own, and nobody's changes."""

import math
import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmrec.errors import UserError
from llmrec.quantize.arrivals import place
from llmrec.quantize.collisions import excess, resolve_collisions


class Grid:
    """Codes are coordinates of points: level l has `sizes[l]` places, and a tuple stands for its point."""

    def __init__(self, sizes: list[int]) -> None:
        self.level_sizes = sizes
        self.levels = len(sizes)

    def encode(self, x: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(x), 0, np.array(self.level_sizes) - 1).astype(np.int32)

    def last_level_costs(self, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
        before = ((x[:, :-1] - codes) ** 2).sum(axis=1)
        return (before[:, None] + (x[:, -1:] - np.arange(self.level_sizes[-1])) ** 2).astype(np.float32)


def points(n: int, sizes: list[int], seed: int) -> np.ndarray:
    """Float32 [n, L], rather more of them in one corner."""
    return (np.random.default_rng(seed).random((n, len(sizes))) ** 2 * np.array(sizes) - 0.5).astype(np.float32)


def arrive(strategy, taken, level_sizes, grid, x) -> np.ndarray:
    return place(strategy, taken, level_sizes, grid.encode(x), grid, x)


def test_the_next_free_rank_of_the_group():
    """Ranks 0 and 2 of (1, 1) are taken, as after a removal; the arrivals fill 1, then 3; elsewhere 0 is free."""
    grid = Grid([2, 2])
    taken = np.array([[1, 1, 0], [1, 1, 2], [0, 1, 0]], np.int32)
    x = np.array([[1, 1], [0, 0], [1, 1], [0, 1]], np.float32)
    found = arrive("dedup", taken, [2, 2, 8], grid, x)
    assert found.tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 3], [0, 1, 1]]
    assert found.dtype == np.int32


def test_a_full_group_sends_the_arrival_to_the_nearest_with_room():
    """Both ranks of (1, 1) are taken; of what is left under the same first code, 2 is nearer to 1.4 than 0."""
    grid = Grid([2, 3])
    taken = np.array([[1, 1, 0], [1, 1, 1]], np.int32)
    assert arrive("dedup", taken, [2, 3, 2], grid, np.array([[1, 1.4]], np.float32)).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("strategy", ["sinkhorn", "nearest-free"])
def test_without_a_dedup_level_the_nearest_free_codes(strategy):
    """(0, 1) is free and stays; then it is taken, as are all under 1, so that the next two go up and elsewhere."""
    grid = Grid([3, 2])
    taken = np.array([[1, 0], [1, 1]], np.int32)
    x = np.array([[0, 1], [0, 1], [1.2, 0.1]], np.float32)
    assert arrive(strategy, taken, [3, 2], grid, x).tolist() == [[0, 1], [0, 0], [2, 0]]


def test_shared_codes_stay_as_they_are():
    grid = Grid([2, 2])
    x = np.array([[1, 1], [1, 1]], np.float32)
    assert arrive("share", np.array([[1, 1]], np.int32), [2, 2], grid, x).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("sizes", "ranks"), [([2, 3], []), ([2, 3], [2]), ([6], []), ([2, 2, 3], [1]), ([1, 2, 3], [])]
)
def test_until_every_semantic_id_is_taken(sizes, ranks):
    grid, level_sizes = Grid(sizes), [*sizes, *ranks]
    every = math.prod(level_sizes)
    taken = np.zeros((0, len(level_sizes)), np.int32)
    x = points(every + 1, sizes, 0)
    found = arrive("dedup", taken, level_sizes, grid, x[:every])
    assert sorted(map(tuple, found.tolist())) == sorted(product(*map(range, level_sizes)))
    with pytest.raises(UserError, match=f"full codebook: all {every} semantic IDs are taken, by {every} items"):
        arrive("dedup", taken, level_sizes, grid, x)


def test_an_arrival_reads_little_of_a_large_catalogue():
    """A dictionary of every item took some hundred bytes for each; the codes of these items take 3.2 MB."""
    grid, rng = Grid([64, 64, 64]), np.random.default_rng(0)
    taken = np.unique(rng.integers(0, [64, 64, 64, 8], size=(200_000, 4)), axis=0).astype(np.int32)
    tracemalloc.start()
    try:
        found = arrive("dedup", taken, [64, 64, 64, 8], grid, points(1, [64] * 3, 0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not (taken == found).all(axis=1).any()
    assert peak < taken.nbytes / 4


@settings(max_examples=60, deadline=None)
@given(
    old=st.integers(1, 30),
    new=st.integers(0, 30),
    seed=st.integers(0, 1000),
    sizes=st.sampled_from([[64], [8, 8], [3, 4, 6]]),
    strategy=st.sampled_from(["dedup", "dedup-popularity", "sinkhorn", "nearest-free"]),
)
def test_distinct_and_the_same_one_by_one(old, new, seed, sizes, strategy):
    grid = Grid(sizes)
    there, x = points(old, sizes, seed), points(new, sizes, seed + 1)
    counts = np.arange(old)
    taken, level_sizes = resolve_collisions(strategy, grid.encode(there), sizes, grid, there, counts)
    together = arrive(strategy, taken, level_sizes, grid, x)
    everybody = np.concatenate([taken, together])
    assert excess(everybody) == 0
    assert ((everybody >= 0) & (everybody < level_sizes)).all()
    for row in x:
        taken = np.concatenate([taken, arrive(strategy, taken, level_sizes, grid, row[None])])
    np.testing.assert_array_equal(taken, everybody)


@settings(max_examples=60, deadline=None)
@given(old=st.integers(1, 40), seed=st.integers(0, 1000), sizes=st.sampled_from([[8, 8], [4, 4, 4]]))
def test_nothing_free_under_the_same_prefix_is_nearer(old, seed, sizes):
    """By going through them all; where the arrival's own prefix is full, the nearest that share all codes but two."""
    grid = Grid(sizes)
    there, x = points(old, sizes, seed), points(1, sizes, seed + 1)
    taken = resolve_collisions("nearest-free", grid.encode(there), sizes, grid, there)[0]
    own, found = grid.encode(x)[0], arrive("nearest-free", taken, sizes, grid, x)[0]
    used = set(map(tuple, taken.tolist()))
    free_by_kept = {
        kept: [c for c in product(*map(range, sizes)) if c not in used and c[:kept] == tuple(own[:kept].tolist())]
        for kept in range(len(sizes) - 2, len(sizes) + 1)
    }
    kept = max((kept for kept, free in free_by_kept.items() if free), default=None)
    assume(kept is not None)
    assert found[:kept].tolist() == own[:kept].tolist()
    least = min(((x[0] - np.array(c)) ** 2).sum() for c in free_by_kept[kept])
    assert ((x[0] - found) ** 2).sum() == pytest.approx(least, abs=1e-5)
