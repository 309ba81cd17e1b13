from itertools import product

import numpy as np
import pytest

from llmrec.quantize.classical import residual
from llmrec.quantize.classical.residual import ROWS, SumEncoder, decode_sum, encode_sum

SIZES = [5, 3, 4]


@pytest.fixture(autouse=True, params=["table", "residuals"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the table of products, and as large codebooks are encoded, without it."""
    if request.param == "residuals":
        monkeypatch.setattr(residual, "MOST_PRODUCTS", 0)
    return request.param


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def codebooks() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(size, 6)) + 0.3).astype(np.float32) for size in SIZES]


def errors(x: np.ndarray, codes: np.ndarray, codebooks: list[np.ndarray]) -> np.ndarray:
    return ((x - decode_sum(codes, codebooks)) ** 2).sum(1)


def greedy(x: np.ndarray, codebooks: list[np.ndarray]) -> np.ndarray:
    """The definition: the nearest code to each raw residual."""
    codes, residual = [], x.astype(np.float64)
    for codebook in codebooks:
        codes.append(((residual[:, None] - codebook) ** 2).sum(-1).argmin(1))
        residual = residual - codebook[codes[-1]]
    return np.column_stack(codes)


def test_one_beam_is_greedy_on_the_residual(x, codebooks):
    np.testing.assert_array_equal(encode_sum(x, codebooks, 1), greedy(x, codebooks))


def test_one_beam_of_the_search_is_greedy(x, codebooks, way):
    encoder = SumEncoder(codebooks, "cpu")
    if way == "residuals":
        found = encoder._search_residuals(encoder._tensor(x), 1)
    else:
        scores = encoder._bias + encoder._tensor(x) @ encoder._codes
        found = encoder._search(scores, encoder._products, 1)
    np.testing.assert_array_equal(found.numpy(), greedy(x, codebooks))


def test_large_codebooks_have_no_table(monkeypatch, way):
    """3 x 65,536 codes would have a table of 51 GB."""
    monkeypatch.setattr(residual, "MOST_PRODUCTS", 1000)
    rng = np.random.default_rng(0)
    for size, table in ((18, True), (19, False)):  # 3 size^2 products
        books = [rng.normal(size=(size, 4)).astype(np.float32) for _ in range(3)]
        assert (SumEncoder(books)._products is not None) == table


@pytest.mark.parametrize("beams", [15, 60])  # C^(L-1) with the levels' own sizes, and every sum
def test_the_exhaustive_beam_is_exact(x, codebooks, beams):
    every = np.array(list(product(*map(range, SIZES))))
    exact = ((x[:, None] - decode_sum(every, codebooks)) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(encode_sum(x, codebooks, beams), every[exact])


def test_beams_lower_the_mean_error(x, codebooks):
    one, four = (errors(x, encode_sum(x, codebooks, beams), codebooks).mean() for beams in (1, 4))
    assert four < one


@pytest.mark.parametrize("beams", [1, 4])
def test_blocks_and_single_rows_agree(codebooks, beams):
    x = np.random.default_rng(2).normal(size=(ROWS + 10, 6)).astype(np.float32)
    encoder = SumEncoder(codebooks)
    codes = encoder.encode(x, beams)
    some = [0, 1, ROWS - 1, ROWS, ROWS + 9]
    np.testing.assert_array_equal(np.vstack([encoder.encode(x[[row]], beams) for row in some]), codes[some])


@pytest.mark.parametrize("beams", [1, 3])
def test_of_equal_codes_the_first_is_taken(x, codebooks, beams):
    doubled = [np.concatenate([codebook, codebook]) for codebook in codebooks]
    np.testing.assert_array_equal(encode_sum(x, doubled, beams), encode_sum(x, codebooks, beams))


def test_a_common_offset_costs_no_accuracy(x, codebooks):
    far = [codebooks[0] + np.float32(100), *codebooks[1:]]
    assert (encode_sum(x + np.float32(100), far, 1) == greedy(x, codebooks)).mean() > 0.99


def test_input_is_left_alone(x, codebooks):
    locked = x.copy()
    locked.flags.writeable = False
    encode_sum(locked, codebooks, 1)
    np.testing.assert_array_equal(locked, x)
