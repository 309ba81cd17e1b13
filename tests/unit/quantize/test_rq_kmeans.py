import numpy as np
import pytest

from llmrec.quantize import TokenizeConfig
from llmrec.quantize.kmeans import kmeans, nearest
from llmrec.quantize.rq_kmeans import RQKMeans


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)


def test_nearest_is_the_nearest_by_euclid(x):
    centroids = x[:20] + 0.1
    distances = ((x[:, None] - centroids[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(nearest(x, centroids), distances.argmin(1))


def test_a_centroid_is_the_mean_of_its_points(x):
    centroids = kmeans(x, 5, iterations=200, seed=0)
    assigned = nearest(x, centroids)
    means = np.stack([x[assigned == code].mean(0) for code in range(5)])
    np.testing.assert_allclose(centroids, means, atol=1e-4)


def test_error_does_not_rise_with_iterations(x):
    errors = []
    for iterations in (1, 2, 4, 8, 16):
        centroids = kmeans(x, 12, iterations, seed=3)
        errors.append(((x - centroids[nearest(x, centroids)]) ** 2).sum())
    assert errors == sorted(errors, reverse=True)


def test_as_many_codes_as_points_leaves_no_error(x):
    quantizer = RQKMeans(TokenizeConfig(levels=2, codes=len(x))).fit(x)
    np.testing.assert_allclose(quantizer.decode(quantizer.encode(x)), x, atol=1e-5)


def test_greedy_on_the_raw_residual(x):
    quantizer = RQKMeans(TokenizeConfig(levels=3, codes=16)).fit(x)
    codes, residual = quantizer.encode(x), x.astype(np.float64)
    for level, codebook in enumerate(quantizer.codebooks):
        distances = ((residual[:, None] - codebook[None]) ** 2).sum(-1)
        np.testing.assert_array_equal(codes[:, level], distances.argmin(1))
        residual = residual - codebook[codes[:, level]]
    np.testing.assert_allclose(quantizer.decode(codes), x - residual, atol=1e-5)


def test_later_levels_leave_earlier_codes_alone(x):
    two, four = (RQKMeans(TokenizeConfig(levels=levels, codes=16)).fit(x).encode(x) for levels in (2, 4))
    np.testing.assert_array_equal(four[:, :2], two)
