"""Which items may come out, per request: kept exact by asking, at every prefix, whether an allowed item is below it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llmrec.index.trie import ItemTrie, ranges


@dataclass(frozen=True)
class Filter:
    """The items that one request may return.

    Attributes:
        allowed: rows of the catalogue, int [E]; None: all.
        excluded: rows of the catalogue, int [E], which must not come out, allowed or not.
    """

    allowed: np.ndarray | None = None
    excluded: np.ndarray | None = None

    @classmethod
    def of_mask(cls, mask: np.ndarray) -> "Filter":
        """The filter that lets through the rows where `mask` (bool [N]) is true, as the shorter of the two lists."""
        if 2 * np.count_nonzero(mask) <= len(mask):
            return cls(allowed=np.flatnonzero(mask))
        return cls(excluded=np.flatnonzero(~mask))

    def normal(self) -> "Filter":
        """The same with sorted unique rows, in only one of the two lists."""
        excluded = np.unique(self.excluded) if self.excluded is not None else np.empty(0, np.int64)
        if self.allowed is None:
            return Filter(excluded=excluded.astype(np.int64))
        return Filter(allowed=np.setdiff1d(self.allowed, excluded).astype(np.int64))

    def allows(self, items: np.ndarray) -> np.ndarray:
        """bool [n]: which of `items` may come out; of a normal filter."""
        if self.allowed is not None:
            return _contains(self.allowed, items)
        return ~_contains(self.excluded, items)


class Restriction:
    """The filters of a batch, on the trie: the children of a prefix that lead to an allowed item.

    Costs grow with the lengths of the lists, not with the catalogue.

    Args:
        trie: of the catalogue.
        filters: of the B requests.
    """

    def __init__(self, trie: ItemTrie, filters: Sequence[Filter]) -> None:
        self.trie = trie
        self.filters = [each.normal() for each in filters]
        self.listed = torch.tensor([each.allowed is not None for each in self.filters], device=trie.device)
        self._alive = self._nodes([each.allowed for each in self.filters])[0]
        nodes, counts = self._nodes([each.excluded for each in self.filters])
        # A node is gone when all of its items are.
        self._gone = [
            key[count == trie.counts(level, key % self._width(level))]
            for level, (key, count) in enumerate(zip(nodes, counts, strict=True))
        ]

    def children(self, level: int, requests: torch.Tensor, parents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `ItemTrie.children`, of `parents` int64 [R] of `requests` int64 [R]: those with an allowed item below."""
        listed = self.listed[requests]
        rows, nodes = self.trie.children(level, torch.where(listed, -1, parents))
        key = requests[rows] * self._width(level) + nodes
        keep = ~_found(self._gone[level], key)
        rows, nodes = rows[keep], nodes[keep]
        if not listed.any():
            return rows, nodes
        alive, base = self._alive[level], requests * self._width(level)
        safe = parents.clamp(min=0)
        start = torch.searchsorted(alive, base + self.trie.starts[level][safe])
        stop = torch.searchsorted(alive, base + self.trie.starts[level][safe + 1])
        more, at = ranges(start, torch.where(listed & (parents >= 0), stop, start))
        return torch.cat([rows, more]), torch.cat([nodes, alive[at] % self._width(level)])

    def _width(self, level: int) -> int:
        return len(self.trie.node_codes[level])

    def _nodes(self, lists: Sequence[np.ndarray | None]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Per level, sorted keys `request * nodes + node` of the listed items' nodes, and the items that each has."""
        filled = [np.empty(0, np.int64) if rows is None else rows for rows in lists]
        request = np.repeat(np.arange(len(filled)), [len(rows) for rows in filled])
        requests = torch.from_numpy(request).to(self.trie.device)
        items = torch.from_numpy(np.concatenate([*filled, np.empty(0, np.int64)])).to(self.trie.device)
        there = self.trie.leaves[items] >= 0  # not removed
        requests, items = requests[there], items[there]
        pairs = [
            torch.unique(requests * self._width(level) + nodes, return_counts=True)
            for level, nodes in enumerate(self.trie.paths(items))
        ]
        return [key for key, _ in pairs], [count for _, count in pairs]


def _found(sorted_keys: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """bool: which of `keys` are among `sorted_keys`, both int64."""
    if not len(sorted_keys):
        return torch.zeros_like(keys, dtype=torch.bool)
    at = torch.searchsorted(sorted_keys, keys).clamp_(max=len(sorted_keys) - 1)
    return sorted_keys[at] == keys


def _contains(sorted_rows: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    if sorted_rows is None or not len(sorted_rows):
        return np.zeros(len(rows), bool)
    at = np.minimum(np.searchsorted(sorted_rows, rows), len(sorted_rows) - 1)
    return sorted_rows[at] == rows


Ask = Callable[[Filter], tuple[np.ndarray, np.ndarray]]
"""From a filter to items int64 [n] that it lets through, best first, and their scores float32 [n]; none if none is."""


@dataclass(frozen=True)
class Quota:
    """At most `most` answers of each group.

    Attributes:
        groups: int64 [N], from 0: the group of each item; -1: of none, and never too many.
        most: at least 1.
    """

    groups: np.ndarray
    most: int


def diverse(ask: Ask, allowed: np.ndarray, k: int, quotas: Sequence[Quota]) -> tuple[np.ndarray, np.ndarray]:
    """The k items that a walk down the whole ranking picks when it passes over those whose group is full.

    The ranking is asked for in pieces, each without what was taken and what is full, so that a group which fills the
    top of it costs one more search, not one over all of its items.

    Args:
        ask: the ranking; exact as far as this is.
        allowed: bool [N].
        k: answers at most; fewer only if no other item has room.
        quotas: all of them hold.

    Returns:
        Items int64 [n] and scores float32 [n], best first.
    """
    allowed = allowed.copy()
    room = [np.full(quota.groups.max(initial=-1) + 1, quota.most) for quota in quotas]
    taken: list[tuple[float, int]] = []
    while len(taken) < k and allowed.any():
        items, scores = ask(Filter.of_mask(allowed))
        if not len(items):
            break
        for item, score in zip(items.tolist(), scores.tolist(), strict=True):
            if len(taken) == k or not allowed[item]:
                continue
            taken.append((score, item))
            allowed[item] = False
            for quota, left in zip(quotas, room, strict=True):
                group = quota.groups[item]
                if group >= 0:
                    left[group] -= 1
                    if not left[group]:
                        allowed[quota.groups == group] = False
    # A beam may find a better item in a later piece, since it is narrower than the catalogue.
    taken.sort(key=lambda pair: -pair[0])
    return np.array([item for _, item in taken], np.int64), np.array([score for score, _ in taken], np.float32)
