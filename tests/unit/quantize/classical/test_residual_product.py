import numpy as np
import pytest

from llmrec.errors import UserError
from llmrec.quantize import Quantizer, TokenizeConfig, quantizer_class
from llmrec.quantize.config import Method

X = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)


def fit(method: Method, x: np.ndarray = X, **settings) -> Quantizer:
    return quantizer_class(method)(TokenizeConfig(method, **settings)).fit(x)


def test_residual_levels_then_opq_of_what_they_leave():
    whole = fit("rq-opq", levels=4, codes=[9, 7, 6, 5])
    first = fit("rq-kmeans", levels=2, codes=[9, 7])
    codes = whole.encode(X)
    np.testing.assert_array_equal(codes[:, :2], first.encode(X))
    left = X - first.decode(first.encode(X))
    last = fit("opq", left, levels=2, codes=[6, 5])
    np.testing.assert_array_equal(codes[:, 2:], last.encode(left))
    np.testing.assert_allclose(whole.decode(codes), first.decode(codes[:, :2]) + last.decode(codes[:, 2:]), atol=1e-5)


def test_the_product_levels_can_be_all_but_the_first():
    quantizer = fit("rq-opq", levels=4, codes=8, product_levels=3)
    np.testing.assert_array_equal(quantizer.encode(X)[:, :1], fit("kmeans", levels=1, codes=8).encode(X))
    assert ((quantizer.decode(quantizer.encode(X)) - X) ** 2).sum() < ((X - X.mean(0)) ** 2).sum() / 2


def test_too_few_residual_levels_or_dimensions_are_refused():
    with pytest.raises(UserError, match=r"product_levels is 2 of 2 levels, .* choose fewer, or method opq"):
        TokenizeConfig("rq-opq", levels=2)
    with pytest.raises(UserError, match="product_levels does nothing for method opq"):
        TokenizeConfig("opq", product_levels=1)
    with pytest.raises(UserError, match="product_levels is 3, but embeddings of 2 dimensions have too few"):
        fit("rq-opq", X[:, :2], levels=4, codes=4, product_levels=3)
