import numpy as np
import pytest

from llmrec.errors import UserError
from llmrec.quantize import TokenizeConfig
from llmrec.quantize.classical.kmeans import kmeans
from llmrec.quantize.classical.product import OptimizedProductQuantizer, ProductQuantizer


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """Correlated dimensions, which is what a rotation can mend."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(300, 3)) @ rng.normal(size=(3, 8)) + 0.2 * rng.normal(size=(300, 8))).astype(np.float32)


def pq(x: np.ndarray, **settings) -> ProductQuantizer:
    return ProductQuantizer(TokenizeConfig("pq", **{"levels": 4, "codes": 8, **settings})).fit(x)


def opq(x: np.ndarray, **settings) -> OptimizedProductQuantizer:
    return OptimizedProductQuantizer(TokenizeConfig("opq", **{"levels": 4, "codes": 8, **settings})).fit(x)


def error(quantizer: ProductQuantizer, x: np.ndarray) -> float:
    return float(((quantizer.decode(quantizer.encode(x)) - x) ** 2).sum())


def test_each_block_has_its_own_kmeans(x):
    quantizer = pq(x)
    for level in range(4):
        block = np.ascontiguousarray(x[:, 2 * level : 2 * level + 2])
        np.testing.assert_array_equal(quantizer.codebooks[level], kmeans(block, 8, 25, level))


def test_the_error_is_the_sum_of_the_blocks_errors(x):
    quantizer = pq(x)
    blocks = [((x[:, 2 * m : 2 * m + 2, None] - c.T) ** 2).sum(1).min(1) for m, c in enumerate(quantizer.codebooks)]
    assert error(quantizer, x) == pytest.approx(np.sum(blocks), rel=1e-5)


def test_table_distances_are_the_exact_ones_to_the_reconstruction(x):
    """Asymmetric distance computation: one table of query to centroids per block, one look-up per code."""
    quantizer = pq(x)
    codes, query = quantizer.encode(x), x[0]
    tables = [((query[2 * m : 2 * m + 2] - c) ** 2).sum(1) for m, c in enumerate(quantizer.codebooks)]
    looked_up = sum(table[codes[:, m]] for m, table in enumerate(tables))
    np.testing.assert_allclose(looked_up, ((query - quantizer.decode(codes)) ** 2).sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [pq, opq])
def test_dimensions_that_do_not_split_evenly_make_blocks_of_two_widths(x, make):
    quantizer = make(x, levels=3)
    assert [codebook.shape[1] for codebook in quantizer.codebooks] == [3, 3, 2]
    assert quantizer.dims == 8
    again = type(quantizer).from_state(quantizer.config(), quantizer.tensors())
    np.testing.assert_array_equal(again.decode(again.encode(x)), quantizer.decode(quantizer.encode(x)))
    assert error(quantizer, x) < 0.5 * ((x - x.mean(0)) ** 2).sum()


@pytest.mark.parametrize("make", [pq, opq])
def test_more_levels_than_dimensions_are_refused(x, make):
    with pytest.raises(UserError, match=r"tokenize.levels is 9, .* 8 dimensions .* choose 8 or fewer"):
        make(x, levels=9)


def test_the_rotation_is_orthogonal(x):
    rotation = opq(x).rotation.astype(np.float64)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(8), atol=1e-5)
    assert not np.allclose(rotation, np.eye(8), atol=0.1)


def test_opq_starts_at_pq_and_every_round_lowers_the_error(x):
    config = TokenizeConfig("opq", levels=4, codes=8)
    centred = x - x.mean(0)
    start = pq(centred)
    errors = [error(start, centred)]
    for rounds in (1, 2, 4, 8):
        quantizer = OptimizedProductQuantizer(config)
        quantizer.codebooks = [codebook.copy() for codebook in start.codebooks]
        quantizer.mean, quantizer.rotation = x.mean(0), np.eye(8, dtype=np.float32)
        for _ in range(rounds):
            quantizer.improve(centred)
        errors.append(error(quantizer, x))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]
    assert error(opq(x), x) <= errors[-1]
