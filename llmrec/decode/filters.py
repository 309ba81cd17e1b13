"""Filters of the allowed items per request. They are exact: the search visits only prefixes of allowed items."""

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
        excluded: rows of the catalogue, int [E], which are never returned, even if they are in `allowed`.
    """

    allowed: np.ndarray | None = None
    excluded: np.ndarray | None = None

    @classmethod
    def of_mask(cls, mask: np.ndarray) -> "Filter":
        """The filter that allows the rows where `mask` (bool [N]) is true; it stores the shorter of the two lists."""
        if 2 * np.count_nonzero(mask) <= len(mask):
            return cls(allowed=np.flatnonzero(mask))
        return cls(excluded=np.flatnonzero(~mask))

    def normal(self) -> "Filter":
        """The same filter with sorted unique rows, in only one of the two lists."""
        excluded = np.unique(self.excluded) if self.excluded is not None else np.empty(0, np.int64)
        if self.allowed is None:
            return Filter(excluded=excluded.astype(np.int64))
        return Filter(allowed=np.setdiff1d(self.allowed, excluded).astype(np.int64))

    def allows(self, items: np.ndarray) -> np.ndarray:
        """bool [n]: which of `items` int [n] may be returned. The filter must be a result of `normal`."""
        if self.allowed is not None:
            return _contains(self.allowed, items)
        return ~_contains(self.excluded, items)


class Restriction:
    """Applies the filters of a batch to the trie: finds the children of a prefix that have an allowed item below.

    The cost grows with the lengths of the filters' lists, not with the size of the catalogue.

    Args:
        trie: of the catalogue.
        filters: B filters, one per request.
    """

    def __init__(self, trie: ItemTrie, filters: Sequence[Filter]) -> None:
        self.trie = trie
        self.filters = [each.normal() for each in filters]
        self.listed = torch.tensor([each.allowed is not None for each in self.filters], device=trie.device)
        self._alive = self._nodes([each.allowed for each in self.filters])[0]
        nodes, counts = self._nodes([each.excluded for each in self.filters])
        # A node is excluded if all items below it are.
        self._gone = [
            key[count == trie.counts(level, key % self._width(level))]
            for level, (key, count) in enumerate(zip(nodes, counts, strict=True))
        ]

    def children(self, level: int, requests: torch.Tensor, parents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Like `ItemTrie.children`, but only children with an allowed item below.

        Args:
            level: of the children.
            requests: int64 [R], the request of each parent, from 0.
            parents: int64 [R], nodes; -1 has no children.

        Returns:
            `(rows, nodes)`, both int64 [total]: `nodes[i]` is a child of `parents[rows[i]]`.
        """
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
        """The nodes above the listed items, per level.

        Args:
            lists: B lists of rows of the catalogue; None is an empty list.

        Returns:
            Per level, sorted unique keys `request * nodes of the level + node`, int64 [n]; and per level, the number
            of listed items below each, int64 [n].
        """
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
    """bool [n]: which of `keys` int64 [n] are in `sorted_keys` int64 [m]."""
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
"""A function that ranks items under a filter.

It returns allowed items int64 [n], best first, and their scores float32 [n]; empty arrays if no item is allowed."""


@dataclass(frozen=True)
class Quota:
    """A limit of the results per group: at most `most` of each.

    Attributes:
        groups: int64 [N], the group of each item, from 0; -1 for items without a group, which have no limit.
        most: at least 1.
    """

    groups: np.ndarray
    most: int


def diverse(ask: Ask, allowed: np.ndarray, k: int, quotas: Sequence[Quota]) -> tuple[np.ndarray, np.ndarray]:
    """The k best items that satisfy all quotas, chosen greedily.

    The result is that of a walk down the whole ranking that skips items whose group is full. The function gets the
    ranking in pieces: each call of `ask` excludes the chosen items and those of full groups. A group with many items at
    the top of the ranking therefore costs one more search, not a search as long as the group.

    Args:
        ask: ranks items under a filter. The result is exact if this is.
        allowed: bool [N].
        k: number of results at most; fewer only if no other allowed item satisfies the quotas.
        quotas: every item must satisfy all of them.

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
    # Beam search is not exact: a later piece may contain an item with a higher score.
    taken.sort(key=lambda pair: -pair[0])
    return np.array([item for _, item in taken], np.int64), np.array([score for score, _ in taken], np.float32)
