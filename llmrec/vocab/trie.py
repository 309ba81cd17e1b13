"""The catalogue's semantic IDs as a trie in flat arrays: which codes may follow a prefix, which items end there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llmrec.errors import UserError


@dataclass(frozen=True)
class ItemTrie:
    """Nodes of level l are the distinct prefixes of length l + 1, numbered in lexicographic order.

    Attributes:
        level_sizes: C_l per level.
        keys: per level, int64 [nodes], sorted: `parent * C_l + code`, the parent being a node of level l - 1
            (0 for the root).
        starts: per level, int64 [parents + 1]: the children of parent p are nodes `starts[p]:starts[p + 1]`.
        counts: per level, int64 [nodes]: how many items lie below a node.
        paths: int64 [N, L]: each item's node on each level.
        order: int64 [N]: items sorted by leaf, in catalogue order within a leaf.
        leaf_starts: int64 [leaves + 1]: the items of a leaf are `order[leaf_starts[n]:leaf_starts[n + 1]]`.
    """

    level_sizes: list[int]
    keys: list[torch.Tensor]
    starts: list[torch.Tensor]
    counts: list[torch.Tensor]
    paths: torch.Tensor
    order: torch.Tensor
    leaf_starts: torch.Tensor

    @classmethod
    def build(cls, codes: np.ndarray, level_sizes: Sequence[int]) -> "ItemTrie":
        """Build from codes int [N, L], vectorised over items.

        Raises:
            UserError: no items, or a code outside its level.
        """
        if codes.ndim != 2 or not len(codes) or codes.shape[1] != len(level_sizes):
            raise UserError(f"Codes of shape {codes.shape} for {len(level_sizes)} levels: expected [items, levels].")
        if (codes < 0).any() or (codes >= np.asarray(level_sizes)).any():
            raise UserError(f"A code lies outside its level: level sizes are {list(level_sizes)}.")
        node = np.zeros(len(codes), dtype=np.int64)
        parents = 1
        keys, starts, counts, paths = [], [], [], []
        for level, size in enumerate(level_sizes):
            key, node, count = np.unique(
                node * size + codes[:, level].astype(np.int64), return_inverse=True, return_counts=True
            )
            keys.append(torch.from_numpy(key))
            starts.append(torch.from_numpy(np.searchsorted(key, np.arange(parents + 1) * size)))
            counts.append(torch.from_numpy(count))
            paths.append(node)
            parents = len(key)
        leaf_starts = np.concatenate([[0], np.cumsum(counts[-1].numpy())])
        return cls(
            level_sizes=list(level_sizes),
            keys=keys,
            starts=starts,
            counts=counts,
            paths=torch.from_numpy(np.stack(paths, axis=1)),
            order=torch.from_numpy(np.argsort(node, kind="stable")),
            leaf_starts=torch.from_numpy(leaf_starts),
        )

    @property
    def levels(self) -> int:
        """L, the length of a semantic ID."""
        return len(self.level_sizes)

    def to(self, device: torch.device | str) -> "ItemTrie":
        """The same trie on `device`."""
        return ItemTrie(
            self.level_sizes,
            [t.to(device) for t in self.keys],
            [t.to(device) for t in self.starts],
            [t.to(device) for t in self.counts],
            self.paths.to(device),
            self.order.to(device),
            self.leaf_starts.to(device),
        )

    def step(self, level: int, parents: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The nodes of `level` reached from `parents` by `codes`, both int64 [R]; -1 where there is none."""
        wanted = parents * self.level_sizes[level] + codes
        found = torch.searchsorted(self.keys[level], wanted).clamp_(max=len(self.keys[level]) - 1)
        exists = (parents >= 0) & (codes >= 0) & (self.keys[level][found] == wanted)
        return torch.where(exists, found, -1)

    def children(self, level: int, parents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All children on `level` of `parents` int64 [R] (-1 has none), as a flat ragged list.

        Returns:
            `(rows, nodes)`, both int64 [total]: `nodes[i]` is a child of `parents[rows[i]]`.
        """
        alive = parents >= 0
        safe = parents.clamp(min=0)
        start = self.starts[level][safe]
        count = torch.where(alive, self.starts[level][safe + 1] - start, 0)
        rows = torch.repeat_interleave(torch.arange(len(parents), device=parents.device), count)
        first = torch.repeat_interleave(start - (count.cumsum(0) - count), count)
        return rows, first + torch.arange(len(rows), device=parents.device)

    def codes(self, level: int, nodes: torch.Tensor) -> torch.Tensor:
        """The last code of each node of `level`, int64, shaped as `nodes`."""
        return self.keys[level][nodes] % self.level_sizes[level]

    def items(self, leaf: int) -> torch.Tensor:
        """The items (rows of the catalogue, int64) whose semantic ID ends in node `leaf` of the last level."""
        return self.order[self.leaf_starts[leaf] : self.leaf_starts[leaf + 1]]

    def exhausted(self, excluded: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Nodes that have no item left once a request's excluded items are gone.

        Args:
            excluded: per request b, int [E_b], rows of the catalogue.

        Returns:
            per level, a sorted int64 tensor of `b * nodes + node`.
        """
        device = self.paths.device
        unique = [np.unique(np.asarray(e, dtype=np.int64)) for e in excluded]
        request = torch.from_numpy(np.repeat(np.arange(len(unique)), [len(e) for e in unique])).to(device)
        items = torch.from_numpy(np.concatenate([*unique, np.empty(0, np.int64)])).to(device)
        result = []
        for level, count in enumerate(self.counts):
            key, gone = torch.unique(request * len(count) + self.paths[items, level], return_counts=True)
            result.append(key[gone == count[key % len(count)]])
        return result
