import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.quantize.classical.kmeans import (
    PROGRESSIVE_DIMS,
    balanced_assignment,
    balanced_kmeans,
    kmeans,
    nearest,
    squared_errors,
)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)


def wide(rows: int = 400) -> np.ndarray:
    """Enough dimensions for the progressive start."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(20, PROGRESSIVE_DIMS))
    return (centres[rng.integers(20, size=rows)] + 0.3 * rng.normal(size=(rows, PROGRESSIVE_DIMS))).astype(np.float32)


def error(x: np.ndarray, centroids: np.ndarray) -> float:
    return float(squared_errors(x, centroids, nearest(x, centroids)).sum(dtype=np.float64))


def test_nearest_is_the_nearest_by_euclid(x):
    centroids = x[:20] + 0.1
    distances = ((x[:, None] - centroids[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(nearest(x, centroids), distances.argmin(1))


def test_nearest_survives_a_large_common_offset(x):
    far = x + np.float32(1000)
    distances = ((far[:, None].astype(np.float64) - far[None, :20]) ** 2).sum(-1)
    assert (nearest(far, far[:20]) == distances.argmin(1)).mean() > 0.98  # |x|^2 alone would round to 0.5 here


@pytest.mark.parametrize("make", [lambda: wide()[:, :6], wide], ids=["k-means++ start", "progressive start"])
def test_a_centroid_is_the_mean_of_its_points(make):
    x = make()
    centroids = kmeans(x, 5, iterations=200, seed=0)
    assigned = nearest(x, centroids)
    means = np.stack([x[assigned == code].mean(0) for code in range(5)])
    np.testing.assert_allclose(centroids, means, atol=1e-4)


def test_error_does_not_rise_with_iterations(x):
    errors = [error(x, kmeans(x, 12, iterations, seed=3)) for iterations in (1, 2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("dims", [3, PROGRESSIVE_DIMS])
@pytest.mark.parametrize("copies", [1, 7])
def test_as_many_codes_as_distinct_points_leave_no_error(dims, copies):
    points = np.random.default_rng(0).normal(size=(40, dims)).astype(np.float32)
    assert error(np.tile(points, (copies, 1)), kmeans(np.tile(points, (copies, 1)), 40, 10, 0)) < 1e-8


@pytest.mark.parametrize("dims", [2, PROGRESSIVE_DIMS])
def test_constant_rows_need_one_code_and_break_nothing(dims, capfd):
    x = np.full((2 * PROGRESSIVE_DIMS, dims), 3, np.float32)
    centroids = kmeans(x, 8, 10, 0)
    assert np.isfinite(centroids).all()
    assert error(x, centroids) == 0
    assert capfd.readouterr().err == ""


def test_every_code_has_a_row_while_there_are_rows_enough():
    x = np.concatenate([np.zeros((500, 4)), np.eye(4), -np.eye(4)]).astype(np.float32)
    assert len(np.unique(nearest(x, kmeans(x, 9, 5, 0)))) == 9


def test_same_seed_same_centroids():
    np.testing.assert_array_equal(kmeans(wide(), 16, 5, 2), kmeans(wide(), 16, 5, 2))
    assert (kmeans(wide(), 16, 5, 2) != kmeans(wide(), 16, 5, 3)).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(1, 12), st.integers(0, 1000), st.booleans())
def test_balanced_sizes_differ_by_at_most_one(rows, codes, seed, duplicated):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    x[rows // 2 :] = 0 if duplicated else x[rows // 2 :]
    sizes = np.bincount(balanced_assignment(x, rng.normal(size=(codes, 3)).astype(np.float32)), minlength=codes)
    assert sizes.sum() == rows
    assert sizes.max() - sizes.min() <= 1  # so each is floor(N/C) or ceil(N/C)


def test_a_balanced_assignment_without_conflict_is_the_nearest():
    centroids = 10 * np.eye(4, dtype=np.float32)
    labels = np.array([2, 0, 3, 1, 1, 0, 2, 3])
    np.testing.assert_array_equal(balanced_assignment(centroids[labels] + 0.5, centroids), labels)


def test_the_near_rows_are_taken_first():
    x = np.array([[0.0], [0.1], [0.2], [0.3]], np.float32)
    labels = balanced_assignment(x, np.array([[0.0], [5.0]], np.float32))
    np.testing.assert_array_equal(labels, [0, 0, 1, 1])


def test_balanced_kmeans_beats_balancing_a_free_kmeans(x):
    free, balanced = kmeans(x, 16, 25, 0), balanced_kmeans(x, 16, 25, 0)
    cost = [squared_errors(x, c, balanced_assignment(x, c)).sum() for c in (free, balanced)]
    assert cost[1] < cost[0]
