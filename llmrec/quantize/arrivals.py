"""Semantic IDs where the levels stand: for items that are added to a catalogue, and for items with new codes."""

import math
from typing import TYPE_CHECKING

import numpy as np

from llmrec.errors import UserError
from llmrec.quantize.collisions import nearest_free_codes, resolve_collisions
from llmrec.quantize.config import Collisions

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
    """The semantic IDs (int32 [n, L']) of items added to a catalogue: distinct and not in `taken`, except with `share`.

    Items are placed one after the other, so the result does not depend on whether they are added in one call or in
    many. Of the catalogue, only the items that share a first code with an added item are sorted.

    Args:
        strategy: how the collisions of the catalogue were resolved.
        taken: semantic IDs of the catalogue's items, int [N, L']; L' is L, or L + 1 with a dedup level.
        level_sizes: the size of each of the L' levels.
        codes: codes of the added items from the quantizer, int [n, L].
        quantizer: the fitted quantizer.
        x: embeddings of the added items, floats [n, D].

    Raises:
        UserError: no semantic ID is free.
    """
    if strategy == "share":
        return codes
    shelves = _Shelves(taken, level_sizes, codes[:, 0], quantizer)
    placed = [shelves.put(tuple(own), vector) for own, vector in zip(codes.tolist(), x, strict=True)]
    return np.array(placed, np.int32).reshape(len(codes), len(level_sizes))


def within_levels(
    strategy: Collisions,
    codes: np.ndarray,
    level_sizes: list[int],
    quantizer: "Quantizer",
    x: np.ndarray,
    counts: np.ndarray | None = None,
) -> np.ndarray:
    """The semantic IDs (int32 [N, L']) of all items for new `codes`, in levels of the old sizes.

    Collisions are resolved as usual. If more items have the same codes than the dedup level has ranks, those beyond it
    are placed as added items are.

    Args:
        strategy: how collisions are resolved.
        codes: codes of the quantizer, int32 [N, L].
        level_sizes: the size of each of the L' levels; L' is L, or L + 1 with a dedup level.
        quantizer: made the codes.
        x: embeddings of the items, floats [N, D].
        counts: training events per item, int64 [N]; only for `dedup-popularity`.

    Raises:
        UserError: no semantic ID is free.
    """
    found, sizes = resolve_collisions(strategy, codes, quantizer.level_sizes, quantizer, x, counts)
    missing = len(level_sizes) - len(sizes)
    if missing > 0:  # no collision is left, so every item has rank 0
        found = np.pad(found, ((0, 0), (0, missing)))
    ranked = found[:, len(level_sizes) :]  # a dedup level that the tokenizer lacks
    fits = (found[:, : len(level_sizes)] < level_sizes).all(axis=1) & ~ranked.any(axis=1)
    found = np.ascontiguousarray(found[:, : len(level_sizes)], np.int32)
    if not fits.all():
        found[~fits] = place(strategy, found[fits], level_sizes, codes[~fits], quantizer, x[~fits])
    return found


class _Shelves:
    """The taken ranks of each tuple of L codes.

    A tuple has as many ranks (`room`) as the dedup level has codes; without a dedup level it has one.

    Args:
        taken: semantic IDs of the catalogue, int [N, L'].
        level_sizes: the size of each of the L' levels.
        first_codes: first codes of the items that will be put, ints [n].
        quantizer: the fitted quantizer.
    """

    def __init__(
        self, taken: np.ndarray, level_sizes: list[int], first_codes: np.ndarray, quantizer: "Quantizer"
    ) -> None:
        self.quantizer = quantizer
        self.levels = quantizer.levels
        self.room = math.prod(level_sizes[self.levels :])
        self.tuples = math.prod(level_sizes)
        self.ranked = len(level_sizes) > self.levels
        self.taken = taken
        wanted = np.zeros(level_sizes[0], bool)
        wanted[first_codes] = True
        self.near = _sorted(taken[wanted[taken[:, 0]]])
        """The taken semantic IDs with a first code of an added item, int [m, L'], sorted."""
        self.ranks: dict[Codes, set[int]] = {}
        """The taken ranks of each tuple that an added item asked for."""
        self.filled = np.empty((0, self.levels), np.int64)
        """The tuples that added items have filled, int64 [f, L]."""
        self.added = 0

    def put(self, codes: Codes, x: np.ndarray) -> Codes:
        """Choose a free semantic ID for an item `x` [D] with these `codes`, mark it as taken and return it."""
        ranks = self._ranks(codes)
        if len(ranks) == self.room:
            codes = self._nearest_with_room(np.array(codes, self.taken.dtype), x)
            ranks = self._ranks(codes)
        rank = next(rank for rank in range(self.room) if rank not in ranks)
        ranks.add(rank)
        self.added += 1
        if len(ranks) == self.room:
            self.filled = np.vstack([self.filled, codes])
        return (*codes, rank) if self.ranked else codes

    def _ranks(self, codes: Codes) -> set[int]:
        """The taken ranks of the tuple `codes` [L]; `put` changes them in place."""
        if codes not in self.ranks:
            same = self._below(np.array(codes, self.taken.dtype))
            self.ranks[codes] = set(same[:, -1].tolist() if self.ranked else range(len(same)))
        return self.ranks[codes]

    def _below(self, prefix: np.ndarray) -> np.ndarray:
        """The semantic IDs of `near`, int [m, L'], that begin with `prefix` [l], which has the dtype of `taken`."""
        low, high = 0, len(self.near)
        for level, code in enumerate(prefix):
            column = self.near[low:high, level]
            high = low + int(column.searchsorted(code, side="right"))
            low += int(column.searchsorted(code))
        return self.near[low:high]

    def _nearest_with_room(self, own: np.ndarray, x: np.ndarray) -> Codes:
        """The nearest codes [L] with a free rank that keep the longest possible prefix of the `own` codes [L]."""
        sizes = self.quantizer.level_sizes
        for depth in range(self.levels - 1, -1, -1):
            if depth == 0 and len(self.near) < len(self.taken):
                self.near = _sorted(self.taken)
            full = self._full(own[:depth])
            if len(full) < math.prod(sizes[depth:]):
                return tuple(nearest_free_codes(x, own, depth, full, self.quantizer).tolist())
        raise UserError(
            f"full codebook: all {self.tuples} semantic IDs are taken, by {len(self.taken) + self.added} items; remove "
            "items, or train again with a higher --tokenize.codes or --tokenize.levels"
        )

    def _full(self, prefix: np.ndarray) -> np.ndarray:
        """The tuples, int [t, L], that begin with `prefix` [l] and have no free rank."""
        codes = self._below(prefix)[:, : self.levels]
        changed = np.flatnonzero((codes[1:] != codes[:-1]).any(axis=1)) + 1
        first = np.concatenate([[0], changed]) if len(codes) else changed
        full = codes[first[np.diff(first, append=len(codes)) == self.room]]
        return np.concatenate([full, self.filled[(self.filled[:, : len(prefix)] == prefix).all(axis=1)]])


def _sorted(semantic_ids: np.ndarray) -> np.ndarray:
    """The rows of `semantic_ids`, int [m, L'], in lexicographic order; each column is contiguous, for searches."""
    return np.asfortranarray(semantic_ids[np.lexsort(semantic_ids.T[::-1])])
