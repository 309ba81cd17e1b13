"""A trie of the catalogue's semantic IDs in flat arrays: the codes that may follow a prefix, and its items.

`with_items` adds items and `without_items` removes items: both make linear passes over the sorted arrays, and do not
sort the catalogue again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llmrec.errors import UserError


@dataclass(frozen=True)
class ItemTrie:
    """A trie of semantic IDs. The nodes of level l are the distinct prefixes of l + 1 codes, in lexicographic order.

    All arrays are int32: 32 bytes per item if few items share a prefix. The cost of a decoding step depends only on
    the number of beams and of children. A trie is never changed in place; a trie made from another may share arrays
    with it.

    Attributes:
        level_sizes: C_l of each level, [L].
        node_codes: per level, [nodes]: the last code of the node's prefix.
        parents: per level, [nodes]: the node's parent on the level before; 0, the root, on the first level.
        starts: per level, [parents + 1]: the children of parent p are the nodes `starts[p]:starts[p + 1]`.
        firsts: per level, [nodes + 1]: the items below node n are `order[firsts[n]:firsts[n + 1]]`.
        order: rows of all items that are not removed, sorted by semantic ID; equal semantic IDs in catalogue order.
        leaves: [N]: the item's node on the last level; -1 for an item that is removed.
    """

    level_sizes: list[int]
    node_codes: list[torch.Tensor]
    parents: list[torch.Tensor]
    starts: list[torch.Tensor]
    firsts: list[torch.Tensor]
    order: torch.Tensor
    leaves: torch.Tensor

    @classmethod
    def build(cls, codes: np.ndarray, level_sizes: Sequence[int]) -> Self:
        """Build the trie of a catalogue.

        Args:
            codes: semantic IDs, int [N, L].
            level_sizes: C_l of each level, [L].

        Raises:
            UserError: `codes` is not [N, L] with N > 0, or a code is outside its level.
        """
        _check(codes, level_sizes)
        order = _sorted_rows(codes, level_sizes)
        changed = np.zeros(len(codes), dtype=bool)
        changed[0] = True
        above = np.array([0, len(codes)])  # first item of each parent, then the end; the root has all items
        node_codes, starts, firsts = [], [], []
        for level in range(codes.shape[1]):
            column = codes[order, level]
            changed[1:] |= column[1:] != column[:-1]
            first = np.append(np.flatnonzero(changed), len(codes))
            node_codes.append(column[first[:-1]])
            starts.append(np.searchsorted(first, above))
            firsts.append(first)
            above = first
        return cls._of(level_sizes, node_codes, starts, firsts, order, len(codes))

    @classmethod
    def _of(
        cls,
        level_sizes: Sequence[int],
        node_codes: list[np.ndarray],
        starts: list[np.ndarray],
        firsts: list[np.ndarray],
        order: np.ndarray,
        rows: int,
    ) -> Self:
        """Make the trie from these arrays; compute `parents` and `leaves` from them. `rows` is N."""
        parents = [_parts_of(start) for start in starts]
        leaves = np.full(rows, -1, np.int32)
        leaves[order] = _parts_of(firsts[-1])
        lists = {"node_codes": node_codes, "parents": parents, "starts": starts, "firsts": firsts}
        return cls(
            level_sizes=list(level_sizes),
            **{name: [_int32(array) for array in arrays] for name, arrays in lists.items()},
            order=_int32(order),
            leaves=torch.from_numpy(leaves),
        )

    def with_items(self, codes: np.ndarray) -> Self:
        """Return the trie with M items added, as rows N to N + M - 1 of the catalogue; both tries are on the CPU.

        Args:
            codes: semantic IDs of the added items, int [M, L].

        Raises:
            UserError: `codes` is not [M, L] with M > 0, or a code is outside its level.
        """
        _check(codes, self.level_sizes)
        new_order = _sorted_rows(codes, self.level_sizes)
        changed = np.zeros(len(codes), dtype=bool)
        changed[0] = True
        # Per added item, on the current level: if the item's prefix has a node in this trie, `exists` is True and `at`
        # is that node; else `at` is the node before which the prefix's new node is inserted. `node` is the number of
        # the prefix's node in the merged trie. A prefix without a node has none on the deeper levels either.
        at = node = np.zeros(len(codes), np.int64)
        exists, inserted = np.ones(len(codes), bool), np.empty(0, np.int64)
        node_codes, starts, firsts = [], [], []
        for level in range(self.levels):
            column = codes[new_order, level]
            changed[1:] |= column[1:] != column[:-1]
            parent, begin = node, self.starts[level].numpy()
            low, high = begin[at].astype(np.int64), begin[at + exists].astype(np.int64)
            at = self._lower(level, *map(torch.from_numpy, (low, high, column.astype(np.int64)))).numpy()
            own = self.node_codes[level].numpy()
            exists = (at < high) & (own[np.minimum(at, len(own) - 1)] == column)
            fresh = changed & ~exists
            node = at + np.cumsum(fresh) - ~exists
            children = _merged_counts(begin, inserted, parent[fresh])
            inserted = at[fresh]
            node_codes.append(np.insert(own, inserted, column[fresh]))
            starts.append(_ends(children))
            firsts.append(_ends(_merged_counts(self.firsts[level].numpy(), inserted, node)))
        after = self.firsts[-1].numpy()[at + exists]
        order = np.insert(self.order.numpy(), after, self.n_items + new_order)
        return self._of(self.level_sizes, node_codes, starts, firsts, order, self.n_items + len(codes))

    def without_items(self, rows: np.ndarray) -> Self:
        """Return the trie without some items; the others keep their row numbers; both tries are on the CPU.

        Args:
            rows: items to remove, int [E].

        Raises:
            UserError: a row is outside the catalogue, or no item would be left.
        """
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.n_items:
            raise UserError(f"Items to remove: rows {rows.min()} to {rows.max()} of a catalogue of {self.n_items}.")
        gone = np.zeros(self.n_items, dtype=bool)
        gone[rows] = True
        order = self.order.numpy()
        stays = ~gone[order]
        if not stays.any():
            raise UserError("Removing these items would leave none.")
        before = _ends(stays)
        node_codes, starts, firsts = [], [], []
        parent_stays = np.ones(1, dtype=bool)
        for codes, start, first in zip(self.node_codes, self.starts, self.firsts, strict=True):
            moved = before[first.numpy()]
            node_stays = moved[1:] > moved[:-1]
            node_codes.append(codes.numpy()[node_stays])
            firsts.append(np.append(moved[:-1][node_stays], before[-1]))
            nodes_before = _ends(node_stays)
            starts.append(np.append(nodes_before[start.numpy()][:-1][parent_stays], nodes_before[-1]))
            parent_stays = node_stays
        return self._of(self.level_sizes, node_codes, starts, firsts, order[stays], self.n_items)

    @property
    def levels(self) -> int:
        """L, the length of a semantic ID."""
        return len(self.level_sizes)

    @property
    def n_items(self) -> int:
        """N, the number of rows of the catalogue, including the rows of removed items."""
        return len(self.leaves)

    @property
    def device(self) -> torch.device:
        """Device of the arrays."""
        return self.order.device

    @property
    def nbytes(self) -> int:
        """Size of all arrays together, in bytes."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def to(self, device: torch.device | str) -> Self:
        """Return the same trie on `device`."""
        return self._from_tensors({name: tensor.to(device) for name, tensor in self._tensors().items()})

    def save(self, path: Path) -> None:
        """Write the trie to `path` as one safetensors file."""
        save_file(self._tensors() | {"level_sizes": torch.tensor(self.level_sizes)}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote; the arrays stay memory-mapped.

        Raises:
            UserError: the file can't be read, is damaged, or is no trie.
        """
        try:
            tensors = load_file(path)
            return cls._from_tensors_of(tensors.pop("level_sizes").tolist(), tensors)
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a trie that llmrec saved: {error}.") from None

    def matches_codes(self, codes: np.ndarray) -> bool:
        """Return whether the trie holds exactly the semantic IDs `codes`, int [N, L], and no item is removed."""
        if codes.shape != (self.n_items, self.levels) or not self._is_sound():
            return False
        paths = self.paths(torch.arange(self.n_items, device=self.device))
        own = [self.codes(level, nodes).cpu().numpy() for level, nodes in enumerate(paths)]
        return all(np.array_equal(mine, column) for mine, column in zip(own, codes.T, strict=True))

    def _is_sound(self) -> bool:
        """Return whether the arrays have valid types, lengths and values, agree with each other, and miss no item."""
        tensors = [self.order, self.leaves, *self.node_codes, *self.parents, *self.starts, *self.firsts]
        if any(tensor.dtype != torch.int32 or tensor.dim() != 1 for tensor in tensors):
            return False
        items, above = len(self.order), 1
        if not items or len(self.leaves) != items or not _is_permutation(self.order):
            return False
        for level in range(self.levels):
            nodes, starts, firsts = len(self.node_codes[level]), self.starts[level], self.firsts[level]
            if not (_is_partition(starts, above, nodes) and _is_partition(firsts, nodes, items)):
                return False
            parents = torch.repeat_interleave(torch.arange(above, device=self.device), starts.diff().long())
            if len(self.parents[level]) != nodes or not torch.equal(self.parents[level].long(), parents):
                return False
            if level and not torch.equal(self.firsts[level - 1], firsts[starts.long()]):
                return False
            above = nodes
        ends = torch.repeat_interleave(torch.arange(above, device=self.device), self.firsts[-1].diff().long())
        return torch.equal(self.leaves[self.order.long()].long(), ends)

    def step(self, level: int, parents: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Return the child on `level` of each of `parents` that has the given code.

        Args:
            level: of the children, from 0.
            parents: nodes of the level before, int64 [R]; 0 is the root for level 0, and -1 has no children.
            codes: a code for each parent, int64 [R].

        Returns:
            Nodes of `level`, int64 [R]; -1 where no child has the code.
        """
        safe = parents.clamp(min=0)
        end = self.starts[level][safe + 1].long()
        at = self._lower(level, self.starts[level][safe].long(), end, codes)
        last = len(self.node_codes[level]) - 1
        exists = (parents >= 0) & (at < end) & (self.node_codes[level][at.clamp(max=last)] == codes)
        return torch.where(exists, at, -1)

    def _lower(self, level: int, low: torch.Tensor, high: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Return, by binary search, the first node in `low:high` of `level` whose code is >= `codes`; `high` if none.

        The nodes `low:high` are siblings, so that their codes are sorted. All arguments and the result are int64 [R].
        """
        last = len(self.node_codes[level]) - 1
        for _ in range(self.level_sizes[level].bit_length()):
            middle = (low + high) // 2
            below = (self.node_codes[level][middle.clamp(max=last)] < codes) & (low < high)
            low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
        return low

    def children(self, level: int, parents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all children of `parents` as one flat list.

        Args:
            level: of the children, from 0.
            parents: nodes of the level before, int64 [R]; -1 has no children.

        Returns:
            `(rows, nodes)`, both int64 [total]: `nodes[i]` is a child of `parents[rows[i]]`.
        """
        safe = parents.clamp(min=0)
        start = self.starts[level][safe].long()
        stop = torch.where(parents >= 0, self.starts[level][safe + 1].long(), start)
        return ranges(start, stop)

    def codes(self, level: int, nodes: torch.Tensor) -> torch.Tensor:
        """Return the last code of the prefix of each of `nodes`, nodes of `level`; int64, same shape as `nodes`."""
        return self.node_codes[level][nodes].long()

    def counts(self, level: int, nodes: torch.Tensor) -> torch.Tensor:
        """Return the number of items below each of `nodes`, nodes of `level`; int64, same shape as `nodes`."""
        return (self.firsts[level][nodes + 1] - self.firsts[level][nodes]).long()

    def single_leaf(self, level: int, nodes: torch.Tensor) -> torch.Tensor:
        """Return whether all items below a node of `level` share one semantic ID; bool, same shape as `nodes`."""
        first, last = self.firsts[level][nodes].long(), self.firsts[level][nodes + 1].long() - 1
        return self.leaves[self.order[first]] == self.leaves[self.order[last]]

    def items_of(self, leaf: int) -> torch.Tensor:
        """Return the items (rows of the catalogue, int64) whose semantic ID is node `leaf` of the last level."""
        return self.order[self.firsts[-1][leaf] : self.firsts[-1][leaf + 1]].long()

    def paths(self, items: torch.Tensor) -> list[torch.Tensor]:
        """Return L tensors int64 [E]: per level, the node of each of `items`, int64 [E]. No item may be removed."""
        node = self.leaves[items].long()
        nodes = [node]
        for level in range(self.levels - 1, 0, -1):
            node = self.parents[level][node].long()
            nodes.append(node)
        return nodes[::-1]

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return all arrays by name; an array of one level is named e.g. `starts.0`."""
        tensors: dict[str, torch.Tensor] = {}
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if isinstance(value, list):
                tensors |= {f"{field.name}.{level}": tensor for level, tensor in enumerate(value)}
            else:
                tensors[field.name] = value
        return tensors

    def _from_tensors(self, tensors: dict[str, torch.Tensor]) -> Self:
        return self._from_tensors_of(self.level_sizes, tensors)

    @classmethod
    def _from_tensors_of(cls, level_sizes: list[int], tensors: dict[str, torch.Tensor]) -> Self:
        def per_level(name: str) -> list[torch.Tensor]:
            return [tensors[f"{name}.{level}"] for level in range(len(level_sizes))]

        lists = {name: per_level(name) for name in ("node_codes", "parents", "starts", "firsts")}
        return cls(level_sizes=level_sizes, **lists, order=tensors["order"], leaves=tensors["leaves"])


def _is_partition(bounds: torch.Tensor, parts: int, of: int) -> bool:
    """Return whether `bounds` [parts + 1] rise strictly from 0 to `of`: they cut range(of) into non-empty parts."""
    return (
        len(bounds) == parts + 1 and int(bounds[0]) == 0 and int(bounds[-1]) == of and bool((bounds.diff() > 0).all())
    )


def _is_permutation(order: torch.Tensor) -> bool:
    """Return whether `order` [N] contains each of 0 ... N - 1 exactly once."""
    inside = bool((order >= 0).all()) and bool((order < len(order)).all())
    return inside and bool((torch.bincount(order.long(), minlength=len(order)) == 1).all())


def ranges(start: torch.Tensor, stop: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """List all integers of the ranges `start[r]:stop[r]`, one range after the other.

    Args:
        start: int64 [R].
        stop: int64 [R], at least `start`.

    Returns:
        `(rows, values)`, both int64 [total]: `values[i]` is in the range `rows[i]`. For start [5, 0] and stop [7, 1],
        they are [0, 0, 1] and [5, 6, 0].
    """
    count = stop - start
    rows = torch.repeat_interleave(torch.arange(len(start), device=start.device), count)
    first = torch.repeat_interleave(start - (count.cumsum(0) - count), count)
    return rows, first + torch.arange(len(rows), device=start.device)


def _check(codes: np.ndarray, level_sizes: Sequence[int]) -> None:
    if codes.ndim != 2 or not len(codes) or codes.shape[1] != len(level_sizes):
        raise UserError(f"Codes of shape {codes.shape} for {len(level_sizes)} levels: expected [items, levels].")
    if (codes < 0).any() or (codes >= np.asarray(level_sizes)).any():
        raise UserError(f"A code lies outside its level: level sizes are {list(level_sizes)}.")


def _sorted_rows(codes: np.ndarray, level_sizes: Sequence[int]) -> np.ndarray:
    """Return the stable lexicographic order of the rows of `codes`, int [N, L], as row numbers, int64 [N].

    If the product of the level sizes is below 2^63, the sort uses one int64 key per row, which is faster.
    """
    if float(np.prod(np.asarray(level_sizes, float))) >= 2**63:
        return np.lexsort(codes.T[::-1])
    key = np.zeros(len(codes), np.int64)
    for level, size in enumerate(level_sizes):
        key *= size
        key += codes[:, level]
    return np.argsort(key, kind="stable")


def _parts_of(bounds: np.ndarray) -> np.ndarray:
    """Return the part of each element, int32 [n], where `bounds` [parts + 1] cut range(n) into non-empty parts.

    [0, 2, 5] gives [0, 0, 1, 1, 1]. For many short parts, this takes half the time of np.repeat.
    """
    parts = np.zeros(bounds[-1], np.int32)
    parts[bounds[1:-1]] = 1
    return np.cumsum(parts, dtype=np.int32, out=parts)


def _ends(counts: np.ndarray) -> np.ndarray:
    """Return the bounds of consecutive runs of the lengths `counts` [n], int32 [n + 1]: [2, 3] gives [0, 2, 5]."""
    ends = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=ends[1:])
    return ends


def _merged_counts(ends: np.ndarray, inserted: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Return the lengths [n + m] of the runs with bounds `ends` [n + 1] after two changes.

    First, an empty run is inserted before each of the runs `inserted` [m]. Then, in the new numbering, a run gets
    longer by 1 for each time that it occurs in `more`.
    """
    counts = np.insert(np.diff(ends), inserted, 0)
    np.add.at(counts, more, 1)
    return counts


def _int32(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int32, copy=False))
