"""Items as codes: inner products with millions of items by look-up tables.

An item's vector is the concatenation of one codeword per level (product quantization), or their sum (residual and
additive quantization). Either way its inner product with a query is a sum over levels of products that L tables of C
numbers hold (Jégou, Douze & Schmid, TPAMI 2011; for item scores LightRec, WWW 2020, and PQTopK, Petrov, Macdonald &
Tonellotto, arXiv 2408.09992):

    score(item) = sum over levels l of table_l[code l of the item],     table_l[c] = query . codeword c of level l

An item takes L bytes (with C up to 256) instead of 4 D. Two levels share one table of C² sums, so that scoring reads
L / 2 numbers per item.

    index = LookupIndex.of(vectors, TokenizeConfig(method="pq", levels=8, codes=256))      # vectors [N, D]
    scores, rows = index.top(queries, 10)                                                  # queries [B, D] -> [B, 10]
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import numpy as np
import torch

from llmrec.errors import UserError
from llmrec.quantize.config import TokenizeConfig
from llmrec.quantize.methods import quantizer_class

PAIR = 65_536
"""Largest number of sums in the table of two levels."""


class LookupIndex:
    """N items of D dimensions as L codes each.

    Args:
        codebooks: codewords of each level, float32 [C_l, w_l]; the widths w_l are all D (sum), or add up to D.
        codes: of the N items, integers [N, L].
    """

    def __init__(self, codebooks: Sequence[np.ndarray], codes: np.ndarray) -> None:
        sizes = [len(codebook) for codebook in codebooks]
        self.codebooks = [torch.from_numpy(np.ascontiguousarray(codebook, np.float32)) for codebook in codebooks]
        step = 2 if all(first * second <= PAIR for first, second in pairwise(sizes)) else 1
        self.groups = [range(level, min(level + step, len(sizes))) for level in range(0, len(sizes), step)]
        self.places = [
            torch.from_numpy(np.ravel_multi_index(tuple(codes[:, group].T), sizes[group.start : group.stop])).int()
            for group in self.groups
        ]
        """Of each group of levels: where its table has the sum for each item, int32 [N]."""

    @classmethod
    def of(cls, vectors: np.ndarray, config: TokenizeConfig) -> Self:
        """Quantize vectors, float32 [N, D], with the method pq, rq-kmeans or aq.

        Raises:
            UserError: another method, whose vectors are no sums of codewords, or `Quantizer.fit` raises it.
        """
        if config.method not in ("pq", "rq-kmeans", "aq"):
            raise UserError(f"method {config.method}: expected pq, rq-kmeans or aq, whose codewords add up to vectors.")
        quantizer = quantizer_class(config.method)(config).fit(vectors)
        tensors = quantizer.tensors()
        codebooks = [tensors[f"codebook.{level}"] for level in range(config.levels)]
        return cls(codebooks, quantizer.encode(vectors))

    @property
    def bytes(self) -> int:
        """Bytes of the codewords, and of one place per item and group of levels, as they lie in memory."""
        return sum(tensor.nbytes for tensor in (*self.codebooks, *self.places))

    @torch.inference_mode()
    def scores(self, queries: np.ndarray) -> torch.Tensor:
        """Inner products, float32 [B, N], of the queries (float32 [B, D]) and the items' joined codewords."""
        given = torch.from_numpy(np.ascontiguousarray(queries, np.float32))
        widths = [codebook.shape[1] for codebook in self.codebooks]
        parts = given.split(widths, dim=1) if sum(widths) == given.shape[1] else [given] * len(widths)
        products = [part @ codebook.T for part, codebook in zip(parts, self.codebooks, strict=True)]
        found = torch.zeros(len(given), len(self.places[0]))
        for group, places in zip(self.groups, self.places, strict=True):
            table = products[group.start]
            if len(group) == 2:
                table = (table[:, :, None] + products[group.start + 1][:, None, :]).flatten(1)
            for row, sums in enumerate(table):  # faster than one gather: the table of a query stays in the cache
                found[row] += sums.index_select(0, places)
        return found

    def top(self, queries: np.ndarray, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best items of each query: inner products, float32 [B, k], and rows, int64 [B, k], best first."""
        best = self.scores(queries).topk(k)
        return best.values, best.indices
