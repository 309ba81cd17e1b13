import numpy as np
import pytest

from llmrec.quantize import TokenizeConfig
from llmrec.quantize.classical.kmeans import kmeans
from llmrec.quantize.classical.normalized import NormalizedRQKMeans

X = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def quantizer() -> NormalizedRQKMeans:
    return NormalizedRQKMeans(TokenizeConfig("rq-kmeans-normalized", levels=3, codes=6)).fit(X)


def test_codes_by_the_definition(quantizer):
    """GRID's loop: scale the residual to length 1, take the nearest code, subtract it."""
    for row, codes in zip(X[:40], quantizer.encode(X[:40]), strict=True):
        residual = row
        for level in range(3):
            residual = residual / np.linalg.norm(residual)
            nearest = ((quantizer.codebooks[level] - residual) ** 2).sum(1).argmin()
            assert codes[level] == nearest
            residual = residual - quantizer.codebooks[level][nearest]


def test_the_first_level_is_kmeans_of_the_directions(quantizer):
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    np.testing.assert_allclose(quantizer.codebooks[0], kmeans(unit, 6, 25, 0), atol=1e-5)


def test_the_length_of_an_item_does_not_count(quantizer):
    lengths = np.random.default_rng(1).uniform(0.1, 9, size=(200, 1)).astype(np.float32)
    agree = (quantizer.encode(lengths * X) == quantizer.encode(X)).all(axis=1)
    assert agree.mean() > 0.99  # rounding may decide a tie


def test_reconstruction_takes_the_mean_lengths(quantizer):
    codes = quantizer.encode(X)
    first, second, third = (codebook[codes[:, level]] for level, codebook in enumerate(quantizer.codebooks))
    one, two, three = quantizer.scales
    assert one == pytest.approx(np.linalg.norm(X, axis=1).mean(), rel=1e-5)
    np.testing.assert_allclose(quantizer.decode(codes), one * (first + two * (second + three * third)), atol=1e-5)
    np.testing.assert_allclose(quantizer.decode_first(codes[:, :2]), one * (first + two * second), atol=1e-5)


def test_costs_of_the_last_level_are_smallest_at_the_codes(quantizer):
    codes = quantizer.encode(X)
    costs = quantizer.last_level_costs(X, codes[:, :-1])
    np.testing.assert_allclose(costs[np.arange(len(X)), codes[:, -1]], costs.min(axis=1), atol=1e-5)


def test_a_row_of_zeros_is_fine(quantizer):
    zero = np.zeros((1, 5), np.float32)
    assert np.isfinite(quantizer.decode(quantizer.encode(zero))).all()
