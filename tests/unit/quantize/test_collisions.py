from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmrec.quantize import Quantizer, TokenizeConfig, quantizer_class
from llmrec.quantize.classical.kmeans import uniform_mapping
from llmrec.quantize.collisions import (
    batches,
    collision_groups,
    dedup,
    excess,
    members,
    ranks,
    resolve_collisions,
    sinkhorn_rounds,
)
from llmrec.quantize.config import Collisions

codes_of_few_values = st.integers(1, 60).flatmap(
    lambda n: st.integers(1, 3).flatmap(lambda levels: arrays(np.int32, (n, levels), elements=st.integers(0, 2)))
)


def crowd(n: int = 200, dims: int = 6, repeats: int = 0, seed: int = 0) -> np.ndarray:
    """Embeddings close enough for collisions; the first `repeats` are the same."""
    x = np.random.default_rng(seed).normal(size=(n, dims)).astype(np.float32)
    x[:repeats] = x[0]
    return x


def fitted(x: np.ndarray, levels: int = 2, codes: int = 16) -> tuple[Quantizer, np.ndarray]:
    quantizer = quantizer_class("rq-kmeans")(TokenizeConfig(levels=levels, codes=codes, iterations=5)).fit(x)
    return quantizer, quantizer.encode(x)


def test_known_answer():
    codes = np.array([[1, 2], [0, 0], [1, 2], [1, 1], [1, 2]], np.int32)
    assert ranks(codes).tolist() == [0, 0, 1, 0, 2]
    unique, size = dedup(codes)
    assert unique.tolist() == [[1, 2, 0], [0, 0, 0], [1, 2, 1], [1, 1, 0], [1, 2, 2]]
    assert unique.dtype == np.int32
    assert size == 8
    group, sizes = collision_groups(codes)
    assert group.tolist() == [2, 0, 2, 1, 2]
    assert sizes.tolist() == [1, 1, 3]
    assert excess(codes) == 2


def test_the_level_grows_to_the_next_power_of_two():
    sizes = [dedup(np.zeros((n, 2), np.int32))[1] for n in (1, 8, 9, 16, 17, 32, 33)]
    assert sizes == [8, 8, 16, 16, 32, 32, 64]


@given(codes_of_few_values)
def test_groups_are_those_of_equal_rows(codes):
    _, group, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    found, found_sizes = collision_groups(codes)
    np.testing.assert_array_equal(found, group.reshape(-1))
    np.testing.assert_array_equal(found_sizes, sizes)
    listed = members(found, found_sizes > 1)
    expected = [np.flatnonzero(found == g).tolist() for g in range(len(sizes)) if sizes[g] > 1]
    assert [rows.tolist() for rows in listed] == expected


def test_no_level_is_one_group():
    group, sizes = collision_groups(np.empty((4, 0), np.int32))
    assert (group.tolist(), sizes.tolist()) == ([0, 0, 0, 0], [4])


@given(codes_of_few_values, st.booleans(), st.data())
def test_all_tuples_unique_and_one_rank_zero_per_prefix(codes, popularity, data):
    counts = data.draw(arrays(np.int64, len(codes), elements=st.integers(0, 3))) if popularity else None
    unique, size = dedup(codes, counts)
    assert len({tuple(row) for row in unique.tolist()}) == len(codes)
    np.testing.assert_array_equal(unique[:, :-1], codes)
    assert (unique[:, -1] == 0).sum() == len({tuple(row) for row in codes.tolist()})
    assert unique[:, -1].max() < size


@given(codes_of_few_values)
def test_ranks_count_up_in_catalogue_order(codes):
    seen: dict[tuple[int, ...], int] = {}
    for row, rank in zip(codes.tolist(), ranks(codes), strict=True):
        assert rank == seen.get(tuple(row), 0)
        seen[tuple(row)] = rank + 1


@given(codes_of_few_values, st.data())
def test_ranks_by_popularity_then_catalogue_order(codes, data):
    counts = data.draw(arrays(np.int64, len(codes), elements=st.integers(0, 3)))
    found = ranks(codes, counts)
    for row in np.unique(codes, axis=0):
        group = np.flatnonzero((codes == row).all(axis=1))
        by_hand = sorted(group, key=lambda item: (-counts[item], item))
        assert found[by_hand].tolist() == list(range(len(group)))


@pytest.mark.parametrize("strategy", [name for name in get_args(Collisions) if name != "share"])
def test_every_strategy_ends_with_distinct_ids(strategy):
    x = crowd(repeats=5)
    quantizer, codes = fitted(x)
    assert excess(codes) > 20
    before = codes.copy()
    settled, sizes = resolve_collisions(strategy, codes, [16, 16], quantizer, x, counts=np.arange(len(x)))
    assert excess(settled) == 0
    assert settled.dtype == np.int32
    assert settled.shape == (len(x), len(sizes))
    assert (settled >= 0).all()
    assert (settled < sizes).all()
    np.testing.assert_array_equal(codes, before)  # what it was given stays


def test_sharing_changes_nothing():
    x = crowd()
    quantizer, codes = fitted(x)
    settled, sizes = resolve_collisions("share", codes, [16, 16], quantizer, x)
    np.testing.assert_array_equal(settled, codes)
    assert sizes == [16, 16]


def test_the_most_popular_gets_rank_zero():
    x = crowd(repeats=5)
    quantizer, codes = fitted(x)
    counts = np.zeros(len(x), np.int64)
    counts[3] = 7
    settled, sizes = resolve_collisions("dedup-popularity", codes, [16, 16], quantizer, x, counts)
    assert sizes == [16, 16, max(8, sizes[-1])]
    assert settled[3, -1] == 0
    assert settled[0, -1] > 0
    with pytest.raises(ValueError, match="counts is None"):
        resolve_collisions("dedup-popularity", codes, [16, 16], quantizer, x)


def lc_rec(codes: np.ndarray, quantizer: Quantizer, x: np.ndarray) -> list[np.ndarray]:
    """The codes after each of LC-Rec's rounds, by one group and one item at a time."""
    rounds = [codes]
    for _ in range(20):
        tuples = [tuple(row) for row in rounds[-1].tolist()]
        groups = {found: [i for i, other in enumerate(tuples) if other == found] for found in tuples}
        if len(groups) == len(tuples):
            break
        new = rounds[-1].copy()
        for rows in groups.values():
            if len(rows) > 1:
                costs = quantizer.last_level_costs(x[rows], rounds[-1][rows, :-1])
                for row, cost, plan in zip(rows, costs, uniform_mapping(torch.from_numpy(costs), 0.003), strict=True):
                    equal = np.flatnonzero(np.isclose(plan, plan.max(), rtol=1e-9, atol=0))
                    new[row, -1] = equal[cost[equal].argmin()]
        rounds.append(new)
    return rounds


@pytest.mark.parametrize("repeats", [0, 12])
def test_sinkhorn_is_the_best_of_lc_recs_rounds(repeats):
    x = crowd(repeats=repeats)
    quantizer, codes = fitted(x)
    rounds = lc_rec(codes, quantizer, x)
    best = min(rounds, key=excess)
    found = sinkhorn_rounds(codes, quantizer, x)
    np.testing.assert_array_equal(found, best)
    assert excess(found) < excess(codes)
    np.testing.assert_array_equal(found[:, :-1], codes[:, :-1])


def test_sinkhorn_moves_no_item_that_collides_with_nobody():
    """Under a prefix without a collision nobody can be run into, so nothing there may move."""
    x = crowd()
    quantizer, codes = fitted(x, levels=3)
    group, sizes = collision_groups(codes)
    prefix = collision_groups(codes[:, :-1])[0]
    quiet = ~np.isin(prefix, prefix[sizes[group] > 1])
    assert quiet.sum() > 50
    found = sinkhorn_rounds(codes, quantizer, x)
    np.testing.assert_array_equal(found[quiet], codes[quiet])
    assert (found[~quiet] != codes[~quiet]).any()


def test_sinkhorn_adds_a_level_only_for_what_is_left():
    x = crowd()
    quantizer, codes = fitted(x, levels=3)
    assert excess(codes) > 0
    assert resolve_collisions("sinkhorn", codes, [16] * 3, quantizer, x)[1] == [16] * 3
    x = crowd(repeats=3)  # equal vectors always share their codes
    quantizer, codes = fitted(x, levels=3)
    settled, sizes = resolve_collisions("sinkhorn", codes, [16] * 3, quantizer, x)
    assert sizes == [16, 16, 16, 8]
    assert sorted(settled[:3, -1]) == [0, 1, 2]


class Adversary:
    """A quantizer to which all codes are alike, so that the mapping sends everybody to code 0."""

    def last_level_costs(self, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return np.ones((len(x), 4), np.float32)


def test_sinkhorn_never_adds_collisions():
    codes = np.array([[0, 0], [0, 1], [0, 1], [0, 2], [0, 3], [0, 3]], np.int32)
    x = np.zeros((6, 1), np.float32)
    assert min(excess(after) for after in lc_rec(codes, Adversary(), x)[1:]) > excess(codes)
    np.testing.assert_array_equal(sinkhorn_rounds(codes, Adversary(), x), codes)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 5000), max_size=8))
def test_batches_keep_every_group_whole_and_in_order(sizes):
    ends = np.cumsum([0, *sizes])
    groups = [np.arange(start, end) for start, end in pairwise(ends)]
    packed = batches(groups)
    assert [rows.tolist() for batch in packed for rows in batch] == [rows.tolist() for rows in groups]
    assert all(len(batch) == 1 or sum(map(len, batch)) <= 4096 for batch in packed)
