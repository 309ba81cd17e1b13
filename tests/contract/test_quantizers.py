"""Every quantizer over planted clusters: what holds for one must hold for all."""

from typing import get_args

import numpy as np
import pytest

from llmrec.errors import UserError
from llmrec.quantize import Quantizer, RQVAEConfig, TokenizeConfig, quantizer_class
from llmrec.quantize.config import Method

GROUPS, PER_GROUP, DIMS, CODES = 8, 24, 12, 8


def planted(seed: int = 0) -> np.ndarray:
    """Unit vectors with a common offset, in well separated groups of well separated subgroups."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(GROUPS, DIMS)), PER_GROUP, axis=0)
    branches = np.tile(np.repeat(0.3 * rng.normal(size=(4, DIMS)), PER_GROUP // 4, axis=0), (GROUPS, 1))
    x = 2 + centres + branches + 0.03 * rng.normal(size=centres.shape)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def config(method: Method, levels: int = 3, seed: int = 0, codes: int = CODES) -> TokenizeConfig:
    network = RQVAEConfig(hidden=[32], latent=8, epochs=40, batch_size=32)
    return TokenizeConfig(method, levels=levels, codes=codes, seed=seed, rq_vae=network)


def fit(method: Method, x: np.ndarray, **settings: int) -> Quantizer:
    return quantizer_class(method)(config(method, **settings)).fit(x)


def error(quantizer: Quantizer, x: np.ndarray) -> float:
    return float(((quantizer.decode(quantizer.encode(x)) - x) ** 2).sum())


@pytest.fixture(scope="module", params=get_args(Method))
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


@pytest.fixture(scope="module")
def fitted(method: Method) -> Quantizer:
    return fit(method, planted())


def test_shapes_and_ranges(fitted):
    x = planted()
    codes = fitted.encode(x)
    assert (fitted.levels, fitted.codes, fitted.level_sizes, fitted.dims) == (3, CODES, [CODES] * 3, DIMS)
    assert codes.shape == (len(x), 3)
    assert codes.dtype == np.int32
    assert (codes >= 0).all()
    assert (codes < fitted.level_sizes).all()
    reconstruction = fitted.decode(codes)
    assert reconstruction.shape == x.shape
    assert reconstruction.dtype == np.float32
    np.testing.assert_array_equal(reconstruction, fitted.decode(codes))


def test_every_code_is_used_and_the_groups_are_found(fitted):
    codes = fitted.encode(planted())
    assert [len(np.unique(codes[:, level])) for level in range(3)] == [CODES] * 3
    # far from chance (8 groups of 24 on 8 codes give at least 3 items each): an item's group names its code
    group = np.repeat(np.arange(GROUPS), PER_GROUP)
    agree = sum(np.bincount(codes[group == g, 0]).max() for g in range(GROUPS))
    assert agree >= 0.8 * len(codes)


def test_the_codes_carry_the_embedding(fitted):
    x = planted()
    assert error(fitted, x) < 0.3 * ((x - x.mean(0)) ** 2).sum()


def test_same_seed_same_codes(method, fitted):
    np.testing.assert_array_equal(fit(method, planted()).encode(planted()), fitted.encode(planted()))
    assert (fit(method, planted(), seed=1).encode(planted()) != fitted.encode(planted())).any()


def test_distortion_falls_with_levels(method):
    errors = [error(fit(method, planted(), levels=levels), planted()) for levels in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_state_round_trip(method, fitted):
    again = quantizer_class(method).from_state(fitted.config(), fitted.tensors())
    codes = fitted.encode(planted())
    np.testing.assert_array_equal(again.encode(planted()), codes)
    np.testing.assert_array_equal(again.decode(codes), fitted.decode(codes))
    assert again.config() == fitted.config()


def test_unseen_items_near_a_group_take_its_first_code(fitted):
    x = planted()
    codes, near = fitted.encode(x)[:, 0], fitted.encode(x + np.float32(1e-4))[:, 0]
    assert (codes == near).mean() > 0.9


def test_each_row_is_encoded_alone(fitted):
    x = planted()
    np.testing.assert_array_equal(np.vstack([fitted.encode(row[None]) for row in x[:20]]), fitted.encode(x)[:20])


def test_no_items_no_codes(fitted):
    assert fitted.encode(np.empty((0, DIMS), np.float32)).shape == (0, 3)


def test_duplicates_share_their_codes(method):
    x = np.repeat(planted()[::4], 3, axis=0)
    codes = fit(method, x).encode(x).reshape(-1, 3, 3)
    assert (codes == codes[:, :1]).all()


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (np.ones((50, DIMS)), "50 items with 1 distinct"),
        (planted()[:1], "1 items with 1 distinct"),
        (np.repeat(planted()[: CODES - 1], 9, axis=0), f"63 items with {CODES - 1} distinct"),
    ],
    ids=["constant", "one item", "too few distinct"],
)
def test_too_few_distinct_embeddings_are_refused(method, x, found):
    with pytest.raises(UserError, match=rf"{found} .* {CODES} codes per level; set --tokenize.codes"):
        fit(method, x)


def test_exactly_as_many_items_as_codes(method):
    x = planted()[:: len(planted()) // CODES][:CODES]
    assert len(np.unique(fit(method, x).encode(x), axis=0)) == CODES


def test_a_constant_dimension_is_harmless(method):
    x = planted()
    x[:, 3] = 7
    quantizer = fit(method, x)
    np.testing.assert_allclose(quantizer.decode(quantizer.encode(x))[:, 3], 7, atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(method, fitted, bad):
    x = planted()
    x[5, 2] = bad
    for use in (fitted.encode, lambda x: fit(method, x)):
        with pytest.raises(UserError, match=r"row 5 .* NaN or infinity"):
            use(x)


def test_other_dimensions_are_refused(fitted):
    with pytest.raises(UserError, match=f"{DIMS + 1} dimensions, this quantizer was fitted on {DIMS}"):
        fitted.encode(np.ones((2, DIMS + 1), np.float32))


@pytest.mark.parametrize(
    ("codes", "found"),
    [([[0, 0, CODES]], "outside"), ([[0, -1, 0]], "outside"), ([[0, 0]], "expected")],
    ids=["too large", "negative", "a level short"],
)
def test_codes_outside_the_codebooks_are_refused(fitted, codes, found):
    with pytest.raises(ValueError, match=found):
        fitted.decode(np.array(codes))
