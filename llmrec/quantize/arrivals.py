"""Semantic IDs of items that arrive after the fit, nobody else's changed.

An item keeps its quantizer's codes where they have room: a free rank of the dedup level, or, without that level, nobody
there. Where they have none it takes the nearest free codes, as `--tokenize.collisions nearest-free` does.
"""

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from llmrec.errors import UserError
from llmrec.quantize.config import Collisions
from llmrec.quantize.nearest_free import nearest_free_tuple

if TYPE_CHECKING:
    from llmrec.quantize.base import Quantizer

Codes = tuple[int, ...]


def place(
    strategy: Collisions,
    taken: np.ndarray,
    level_sizes: list[int],
    codes: np.ndarray,
    quantizer: "Quantizer",
    x: np.ndarray,
) -> np.ndarray:
    """The semantic IDs (int32 [n, L']) of arriving items, distinct and not `taken`, except under `share`.

    One item after the other takes its place, so that it is the same whether they come together or one by one.

    Args:
        strategy: what the others' collisions were settled by.
        taken: semantic IDs int [N, L'] of the items that are there; L' is L, or L + 1 with a dedup level.
        level_sizes: L' of them.
        codes: what the quantizer gave the arriving items, int [n, L].
        quantizer: the fitted one.
        x: the arriving items' embeddings, floats [n, D].

    Raises:
        UserError: there is no free semantic ID left.
    """
    if strategy == "share":
        return codes
    shelves = _Shelves(taken, level_sizes, quantizer)
    placed = [shelves.put(tuple(own), vector) for own, vector in zip(codes.tolist(), x, strict=True)]
    return np.array(placed, np.int32).reshape(len(codes), len(level_sizes))


class _Shelves:
    """Which ranks of which codes are taken; codes of L levels have as many ranks as the dedup level has codes, or 1."""

    def __init__(self, taken: np.ndarray, level_sizes: list[int], quantizer: "Quantizer") -> None:
        self.quantizer = quantizer
        self.levels = quantizer.levels
        self.room = math.prod(level_sizes[self.levels :])
        self.items, self.tuples = len(taken), math.prod(level_sizes)
        self.ranked = len(level_sizes) > self.levels
        self.ranks: dict[Codes, set[int]] = defaultdict(set)
        for semantic_id in taken.tolist():
            self.ranks[tuple(semantic_id[: self.levels])].add(semantic_id[-1] if self.ranked else 0)
        full = [codes for codes, ranks in self.ranks.items() if len(ranks) == self.room]
        self.full = np.array(full, np.int64).reshape(len(full), self.levels)

    def put(self, codes: Codes, x: np.ndarray) -> Codes:
        """The semantic ID that an item `x` [D] of these `codes` gets; taken from now on."""
        if len(self.ranks[codes]) == self.room:
            codes = self._nearest_with_room(np.array(codes), x)
        ranks = self.ranks[codes]
        rank = next(rank for rank in range(self.room) if rank not in ranks)
        ranks.add(rank)
        self.items += 1
        if len(ranks) == self.room:
            self.full = np.vstack([self.full, codes])
        return (*codes, rank) if self.ranked else codes

    def _nearest_with_room(self, own: np.ndarray, x: np.ndarray) -> Codes:
        """The nearest codes with a free rank, sharing as many of the first `own` codes [L] as may be."""
        sizes = self.quantizer.level_sizes
        for depth in range(self.levels - 1, -1, -1):
            alike = self.full[(self.full[:, :depth] == own[:depth]).all(axis=1)]
            if len(alike) < math.prod(sizes[depth:]):
                return tuple(nearest_free_tuple(x, own, depth, alike, self.quantizer).tolist())
        raise UserError(
            f"full codebook: all {self.tuples} semantic IDs are taken, by {self.items} items; remove items, or train "
            "again with a higher --tokenize.codes or --tokenize.levels"
        )
