"""Look-up tables give the inner products of the joined codewords, and the order of brute force."""

import numpy as np
import pytest
import torch

from llmrec.errors import UserError
from llmrec.index.lookup import LookupIndex
from llmrec.quantize import TokenizeConfig, quantizer_class

VECTORS = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32)
QUERIES = np.random.default_rng(1).normal(size=(4, 12)).astype(np.float32)


@pytest.mark.parametrize(
    ("method", "levels", "codes"),
    [("pq", 4, 16), ("pq", 3, 8), ("rq-kmeans", 2, [8, 16]), ("aq", 3, 8), ("pq", 2, 280)],
)
def test_scores_are_those_of_the_reconstruction(method: str, levels: int, codes: int | list[int]) -> None:
    """An odd number of levels, unequal levels, and codebooks too large to share a table, among others."""
    config = TokenizeConfig(method=method, levels=levels, codes=codes)
    index = LookupIndex.of(VECTORS, config)
    quantizer = quantizer_class(method)(config).fit(VECTORS)
    expected = torch.from_numpy(QUERIES @ quantizer.decode(quantizer.encode(VECTORS)).T)
    torch.testing.assert_close(index.scores(QUERIES), expected, atol=1e-4, rtol=1e-4)
    values, rows = index.top(QUERIES, 5)
    torch.testing.assert_close(expected.gather(1, rows), expected.topk(5).values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(values, expected.topk(5).values, atol=1e-4, rtol=1e-4)


def test_bytes() -> None:
    """The codewords as float32, and four bytes for two levels of an item."""
    index = LookupIndex([np.zeros((16, 3))] * 4, np.zeros((300, 4), np.int32))
    assert index.bytes == 4 * 16 * 12 + 4 * 300 * 2


def test_methods_without_sums_of_codewords_are_refused() -> None:
    with pytest.raises(UserError, match="method opq: expected pq, rq-kmeans or aq"):
        LookupIndex.of(VECTORS, TokenizeConfig(method="opq", levels=3, codes=8))
