import numpy as np
import pytest

from llmrec.quantize import TokenizeConfig
from llmrec.quantize.base import RandomCodes


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4000, 3)).astype(np.float32)


def fit(x: np.ndarray, **settings) -> RandomCodes:
    return RandomCodes(TokenizeConfig("random", **{"codes": 16, **settings})).fit(x)


def test_codes_are_uniform_and_independent(x):
    codes = fit(x, codes=[16, 8, 4]).encode(x)
    for level, size in enumerate((16, 8, 4)):
        expected = len(x) / size
        chi2 = ((np.bincount(codes[:, level], minlength=size) - expected) ** 2 / expected).sum()
        assert chi2 < 3 * size
    pairs = np.bincount(codes[:, 1] * 4 + codes[:, 2], minlength=32)
    assert ((pairs - 125) ** 2 / 125).sum() < 3 * 32


def test_equal_rows_share_and_nothing_else_matters(x):
    codes = fit(x).encode(x)
    np.testing.assert_array_equal(fit(x[:100]).encode(np.repeat(x, 2, axis=0)), np.repeat(codes, 2, axis=0))


def test_negative_zero_is_zero():
    x = np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 1.0]], np.float32)
    codes = fit(x, levels=20).encode(x)
    np.testing.assert_array_equal(codes[0], codes[1])
    assert (codes[0] != codes[2]).any()


def test_the_codes_of_a_seed_never_change():
    codes = fit(np.array([[1, 2], [3, 4]]), levels=2, codes=256, seed=7).encode(np.array([[1, 2], [3, 4]]))
    np.testing.assert_array_equal(codes, [[61, 64], [67, 137]])


def test_another_seed_gives_other_codes(x):
    assert (fit(x, seed=1).encode(x) == fit(x).encode(x)).mean() == pytest.approx(1 / 16, abs=0.01)


def test_every_reconstruction_is_the_mean(x):
    quantizer = fit(x)
    np.testing.assert_allclose(quantizer.decode(quantizer.encode(x)), np.tile(x.mean(0), (len(x), 1)), atol=1e-6)
