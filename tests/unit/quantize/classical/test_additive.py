import numpy as np
import pytest

from llmrec.quantize import TokenizeConfig
from llmrec.quantize.classical.additive import RIDGE, AdditiveQuantizer, solve_codebooks
from llmrec.quantize.classical.residual import RQKMeans, decode_sum, encode_sum


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)


def aq(x: np.ndarray, **settings) -> AdditiveQuantizer:
    return AdditiveQuantizer(TokenizeConfig("aq", **{"codes": 8, **settings})).fit(x)


def error(quantizer: RQKMeans, x: np.ndarray) -> float:
    return float(((quantizer.decode(quantizer.encode(x)) - x) ** 2).sum())


def test_least_squares_agrees_with_the_dense_solution(x):
    rng = np.random.default_rng(1)
    sizes = [5, 3, 4]
    codebooks = [rng.normal(size=(size, 6)).astype(np.float32) for size in sizes]
    codes = np.column_stack([rng.integers(size, size=len(x)) for size in sizes])
    one_hot = np.hstack([np.eye(size)[codes[:, level]] for level, size in enumerate(sizes)])
    present = np.concatenate(codebooks)
    dense = np.linalg.solve(one_hot.T @ one_hot + RIDGE * np.eye(12), one_hot.T @ x + RIDGE * present)
    solved = solve_codebooks(x - decode_sum(codes, codebooks), codes, codebooks)
    np.testing.assert_allclose(np.concatenate(solved), dense, atol=1e-3)


def test_a_code_without_items_stays_where_it_is(x):
    codebooks = [np.full((3, 6), 7, np.float32), np.zeros((2, 6), np.float32)]
    codes = np.zeros((len(x), 2), np.int64)
    solved = solve_codebooks(x - decode_sum(codes, codebooks), codes, codebooks)
    np.testing.assert_allclose(solved[0][1:], 7)


def test_joint_codebooks_beat_residual_kmeans_under_the_same_search(x):
    residual = RQKMeans(TokenizeConfig("rq-kmeans", codes=8, beams=8)).fit(x)
    assert error(aq(x, beams=8), x) < 0.99 * error(residual, x)


def test_error_never_ends_above_its_start(x):
    """Even one round is kept only if it helped."""
    residual = RQKMeans(TokenizeConfig("rq-kmeans", codes=8, iterations=3, beams=1)).fit(x)
    assert error(aq(x, beams=1, iterations=3), x) <= error(residual, x)


def test_one_beam_is_the_greedy_residual_encoding(x):
    quantizer = aq(x, beams=1)
    residual = RQKMeans(TokenizeConfig(codes=8))
    residual.codebooks = quantizer.codebooks
    np.testing.assert_array_equal(quantizer.encode(x), residual.encode(x))


def test_beams_lower_the_mean_error(x):
    codebooks = aq(x).codebooks
    errors = [((x - decode_sum(encode_sum(x, codebooks, beams), codebooks)) ** 2).sum() for beams in (1, 8)]
    assert errors[1] < errors[0]
