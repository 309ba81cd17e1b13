"""Hierarchical k-means: a tree whose nodes split their items by k-means; a semantic ID is a path from the root.

The tree is like that of the identifiers of DSI (arXiv 2202.06991) and, with balanced subtrees, of EAGER
(arXiv 2406.14017). Here all paths have L steps. If a node has at most C distinct items, each gets its own child.
"""

from collections.abc import Callable, Sequence

import numpy as np

from llmrec.console import track
from llmrec.quantize.base import Quantizer, Rows, Some, require_finite_rows
from llmrec.quantize.classical.kmeans import balanced_assignment, balanced_kmeans, distinct_rows, kmeans, nearest


class HierarchicalKMeans(Quantizer):
    """Approximates x by the centroid of the last node of its path.

    Nodes are numbered breadth first, so the children of a node are a range of numbers, and these ranges are in the
    order of their parents.
    """

    centroids: np.ndarray
    """Centroid of each of the M nodes, the root first, float32 [M, D]."""
    children: np.ndarray
    """Number of children of each node, int32 [M]."""

    @property
    def dims(self) -> int:
        return self.centroids.shape[1]

    @property
    def least_distinct(self) -> int:
        return self.level_sizes[0]

    def tensors(self) -> dict[str, np.ndarray]:
        return {"centroids": self.centroids, "children": self.children}

    def _restore(self, tensors: dict[str, np.ndarray]) -> None:
        self.centroids, self.children = tensors["centroids"], tensors["children"]
        self._number_children()

    def _number_children(self) -> None:
        """Set `_first`, the number of each node's first child."""
        self._first = 1 + np.cumsum(self.children, dtype=np.int64) - self.children

    def _fit(self, x: np.ndarray, collaborative: np.ndarray | None, texts: Sequence[str] | None) -> None:
        centroids, children = [x.mean(axis=0, keepdims=True)], []
        members = [np.arange(len(x))]  # the rows of each node at the present depth
        for level in track(range(self.levels), self._config.method, unit="levels"):
            below: list[np.ndarray] = []
            for rows in members:
                branches, labels = self._split(x[rows], self.level_sizes[level])
                centroids.append(branches)
                children.append(len(branches))
                below += _groups(rows, labels, len(branches))
            members = below
        self.centroids = np.concatenate(centroids).astype(np.float32)
        self.children = np.array(children + [0] * len(members), np.int32)
        self._number_children()

    def _split(self, x: np.ndarray, branches: int) -> tuple[np.ndarray, np.ndarray]:
        """Split a node with the rows `x` [n, D] into m <= `branches` children.

        Returns:
            The centroids [m, D] of the children and the child of each row, ints [n].
        """
        config = self._config
        if config.balanced:
            centroids = x if len(x) <= branches else balanced_kmeans(x, branches, config.iterations, config.seed)
            return centroids, balanced_assignment(x, centroids)
        first, child = distinct_rows(x)
        if len(first) <= branches:
            return x[first], child
        centroids = kmeans(x, branches, config.iterations, config.seed)
        return centroids, nearest(x, centroids)

    def assign(self, x: np.ndarray) -> np.ndarray:
        """Codes (int32 [N, L]) of a whole catalogue `x` (floats [N, D]); balanced: each node splits its rows evenly."""
        if not self._config.balanced:
            return self.encode(x)
        self._require_dims(x)
        require_finite_rows(x)
        return self._descend(x, balanced_assignment)

    def _encode(self, x: np.ndarray) -> np.ndarray:
        return self._descend(x, nearest)

    def _descend(self, x: np.ndarray, choose: Callable[[Rows, np.ndarray], np.ndarray]) -> np.ndarray:
        """Codes (int32 [N, L]) of `x` [N, D]: at each node, `choose(rows, child centroids)` gives each row's child."""
        codes = np.zeros((len(x), self.levels), np.int32)
        node = np.zeros(len(x), np.int64)
        for level in range(self.levels):
            rows = np.flatnonzero(self.children[node] > 1)  # an only child has code 0
            forks, fork = np.unique(node[rows], return_inverse=True)
            for parent, group in zip(forks, _groups(rows, fork, len(forks)), strict=True):
                first = self._first[parent]
                codes[group, level] = choose(Some(x, group), self.centroids[first : first + self.children[parent]])
            node = self._first[node] + codes[:, level]
        return codes

    def decode_first(self, codes: np.ndarray) -> np.ndarray:
        return self._decode(codes)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        """The centroid of the last node of each path; if a path leaves the tree, of its last node inside the tree."""
        node = np.zeros(len(codes), np.int64)
        inside = np.ones(len(codes), bool)
        for level in range(codes.shape[1]):
            inside &= codes[:, level] < self.children[node]
            node = np.where(inside, self._first[node] + codes[:, level], node)
        return self.centroids[node]


def _groups(rows: np.ndarray, labels: np.ndarray, count: int) -> list[np.ndarray]:
    """Split `rows` [n] by `labels` [n]: for each label 0..count-1, its rows in their order."""
    sizes = np.bincount(labels, minlength=count)
    return np.split(rows[np.argsort(labels, kind="stable")], np.cumsum(sizes) - sizes)[1:]
