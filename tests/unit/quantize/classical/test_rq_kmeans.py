import tracemalloc

import numpy as np
import pytest

from llmrec.quantize import TokenizeConfig, quantizer_class
from llmrec.quantize.base import BLOCK
from llmrec.quantize.classical.kmeans import balanced_assignment
from llmrec.quantize.classical.residual import RQKMeans, encode_sum


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)


def fit(x: np.ndarray, **settings) -> RQKMeans:
    return RQKMeans(TokenizeConfig(**{"codes": 16, **settings})).fit(x)


def error(quantizer: RQKMeans, x: np.ndarray) -> float:
    return float(((quantizer.decode(quantizer.encode(x)) - x) ** 2).sum())


def test_as_many_codes_as_points_leaves_no_error(x):
    quantizer = fit(x, levels=2, codes=len(x))
    np.testing.assert_allclose(quantizer.decode(quantizer.encode(x)), x, atol=1e-5)
    # nothing but rounding is left for the second level: one code
    assert len(np.unique(quantizer.encode(x)[:, 1])) == 1


def test_greedy_on_the_raw_residual(x):
    quantizer = fit(x)
    codes, residual = quantizer.encode(x), x.astype(np.float64)
    for level, codebook in enumerate(quantizer.codebooks):
        distances = ((residual[:, None] - codebook[None]) ** 2).sum(-1)
        np.testing.assert_array_equal(codes[:, level], distances.argmin(1))
        residual = residual - codebook[codes[:, level]]
    np.testing.assert_allclose(quantizer.decode(codes), x - residual, atol=1e-5)


def test_later_levels_leave_earlier_codes_alone(x):
    two, four = (fit(x, levels=levels).encode(x) for levels in (2, 4))
    np.testing.assert_array_equal(four[:, :2], two)


def test_error_does_not_rise_with_levels(x):
    errors = [error(fit(x, levels=levels), x) for levels in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)


def test_the_reconstruction_is_the_sum_of_the_codes(x):
    quantizer = fit(x, codes=[16, 8, 4])
    codes = quantizer.encode(x)
    total = sum(codebook[codes[:, level]] for level, codebook in enumerate(quantizer.codebooks))
    np.testing.assert_allclose(quantizer.decode(codes), total, atol=1e-6)


def test_beams_lower_the_error_in_encoding_and_in_fitting(x):
    greedy, searched = fit(x, levels=4), fit(x, levels=4, beams=8)
    late = ((greedy._decode(encode_sum(x, greedy.codebooks, 8)) - x) ** 2).sum()
    assert error(greedy, x) > late > error(searched, x)


def test_refitting_encodes_with_the_new_codebooks(x):
    quantizer = fit(x)
    quantizer.encode(x)
    other = np.random.default_rng(5).normal(size=(300, 6)).astype(np.float32)
    np.testing.assert_array_equal(quantizer.fit(other).encode(x), fit(other).encode(x))


@pytest.mark.parametrize("rows", [300, 289])
def test_balanced_codes_are_shared_evenly_at_every_level(x, rows):
    quantizer = fit(x[:rows], balanced=True)
    codes = quantizer.assign(x[:rows])
    for level in range(3):
        sizes = np.bincount(codes[:, level], minlength=16)
        assert sizes.max() <= -(-rows // 16)
        assert sizes.min() >= rows // 16
    assert (np.bincount(quantizer.encode(x[:rows])[:, 0]) > -(-rows // 16)).any()  # an item alone takes the nearest


def test_assigning_leaves_the_catalogue_alone(x):
    before = x.copy()
    fit(x, balanced=True).assign(x)
    np.testing.assert_array_equal(x, before)


def test_without_balance_assign_is_encode(x):
    quantizer = fit(x)
    np.testing.assert_array_equal(quantizer.assign(x), quantizer.encode(x))


def test_no_worse_than_faiss_at_equal_settings():
    import faiss

    rng = np.random.default_rng(3)
    spectrum = 1 / np.sqrt(1 + np.arange(128))  # variance falls off as that of text embeddings does
    x = (rng.normal(size=(2000, 128)) * spectrum).astype(np.float32)
    ours = np.mean([error(fit(x, codes=32, seed=seed), x) for seed in range(3)])
    theirs = []
    for seed in range(3):
        other = faiss.ResidualQuantizer(128, 3, 5)
        other.max_beam_size, other.cp.niter, other.cp.seed = 1, 25, seed
        other.train(x)
        theirs.append(((other.decode(other.compute_codes(x)) - x) ** 2).sum())
    assert ours <= 1.002 * np.mean(theirs)


@pytest.mark.parametrize("method", ["rq-kmeans", "hierarchical-kmeans"])
def test_a_balanced_assignment_copies_blocks_only(method):
    x = np.random.default_rng(0).normal(size=(6 * BLOCK, 16)).astype(np.float32)
    config = TokenizeConfig(method, levels=2, codes=4, iterations=1, balanced=True, fit_rows=200)
    quantizer = quantizer_class(method)(config).fit(x)
    tracemalloc.start()
    try:
        codes = quantizer.assign(x)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.ptp(np.bincount(codes[:, 0])) <= 1
    labels = 12 * 8 * len(x)  # labels, distances and orders of the rows, which do not grow with the dimensions
    assert peak < labels + 6 * BLOCK * 16 * 4


def test_a_balanced_assignment_subtracts_level_by_level(x):
    """The residuals that are computed on request are those of the definition, to the last bit."""
    quantizer = fit(x, levels=3, codes=7, balanced=True)
    residual, expected = x.copy(), []
    for codebook in quantizer.codebooks:
        expected.append(balanced_assignment(residual, codebook))
        residual -= codebook[expected[-1]]
    np.testing.assert_array_equal(quantizer.assign(x), np.column_stack(expected))
