import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmrec.quantize.collisions import collision_groups, dedup, ranks

codes_of_few_values = st.integers(1, 60).flatmap(
    lambda n: st.integers(1, 3).flatmap(lambda levels: arrays(np.int32, (n, levels), elements=st.integers(0, 2)))
)


def test_known_answer():
    codes = np.array([[1, 2], [0, 0], [1, 2], [1, 1], [1, 2]], np.int32)
    assert ranks(codes).tolist() == [0, 0, 1, 0, 2]
    unique, size = dedup(codes)
    assert unique.tolist() == [[1, 2, 0], [0, 0, 0], [1, 2, 1], [1, 1, 0], [1, 2, 2]]
    assert unique.dtype == np.int32
    assert size == 8
    group, sizes = collision_groups(codes)
    assert sizes[group].tolist() == [3, 1, 3, 1, 3]


def test_the_level_grows_to_the_next_power_of_two():
    sizes = [dedup(np.zeros((n, 2), np.int32))[1] for n in (1, 8, 9, 16, 17, 32, 33)]
    assert sizes == [8, 8, 16, 16, 32, 32, 64]


@given(codes_of_few_values)
def test_all_tuples_unique_and_one_rank_zero_per_prefix(codes):
    unique, size = dedup(codes)
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
