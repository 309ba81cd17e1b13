"""The figures of the report on semantic IDs: code usage, collisions, distortion, and nearest neighbours kept.

Vectors are read in blocks, so that a report on a million items never holds a copy of all of them.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.quantize.base import BLOCK, Quantizer, Rows
from llmrec.quantize.collisions import collision_groups

if TYPE_CHECKING:
    from llmrec.collaborative.behaviour import Behaviour


class Reconstruction:
    """The vectors, float32 [N, D], that `quantizer` decodes from `codes`, integers [N, L]; decoded on request."""

    def __init__(self, quantizer: Quantizer, codes: np.ndarray) -> None:
        self._quantizer = quantizer
        self._codes = codes

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return self._quantizer.decode(self._codes[rows])


def blocks(x: Rows) -> Iterator[tuple[slice, np.ndarray]]:
    """Iterate over `x` [N, D] in blocks: yield the slice of the rows, and the rows as float32 [B, D]."""
    for start in range(0, len(x), BLOCK):
        where = slice(start, min(start + BLOCK, len(x)))
        yield where, np.asarray(x[where], np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    """Return the rows of `x`, floats [N, D], scaled to length 1; a row of zeros stays zeros."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def order_by_content(x: Rows) -> np.ndarray:
    """Return the rows of `x`, floats [N, D], int64 [N], in the order of a hash of their values.

    Whatever the order of the rows in `x`, the same vectors come in the same order.
    """
    hashes = np.empty(len(x), np.uint64)
    factors = np.random.default_rng(0).integers(2**64, size=x[:1].shape[1], dtype=np.uint64) | np.uint64(1)
    for where, block in blocks(x):
        bits = np.ascontiguousarray(block).view(np.uint32).astype(np.uint64)
        hashes[where] = (bits * factors).sum(axis=1, dtype=np.uint64)
    return np.argsort(hashes, kind="stable")


PAIRS = 20_000
"""Most pairs of items per level that `prefix_cohesion` averages over."""


def code_figures(codes: np.ndarray, level_sizes: list[int]) -> dict[str, Any]:
    """Compute the use of the codes per level, and the collisions.

    With p_k the share of the items that have code k, and H = -sum_k p_k log p_k:

    - `usage`: share of the C codes that items use;
    - `perplexity`: exp(H), between 1 and C;
    - `entropy`: H / log C, between 0 and 1;
    - `gini`: 0 if all codes have equally many items, 1 - 1/C if one code has all;
    - `collision_rate`: of the whole codes, as the function of that name;
    - `max_collision`: items in the largest group of items with equal codes;
    - `collision_groups`: maps the size of a group of items with equal codes (as text) to the number of such groups.

    Args:
        codes: integers [N, L].
        level_sizes: C of each level, [L].

    Returns:
        The figures by name; the first four are lists [L].
    """
    levels = [_use(np.bincount(codes[:, level], minlength=size)) for level, size in enumerate(level_sizes)]
    sizes = collision_groups(codes)[1]
    groups = np.unique(sizes, return_counts=True)
    return {
        **{name: [level[name] for level in levels] for name in ("usage", "perplexity", "entropy", "gini")},
        "collision_rate": collision_rate(codes),
        "max_collision": int(sizes.max()),
        "collision_groups": {str(size): int(count) for size, count in zip(*groups, strict=True)},
    }


def _use(counts: np.ndarray) -> dict[str, float]:
    """Compute the first four figures of `code_figures` from the items per code, `counts`, integers [C]."""
    share = np.sort(counts) / counts.sum()
    used = share[share > 0]
    entropy = float(-(used * np.log(used)).sum())
    rank = np.arange(1, len(share) + 1)
    return {
        "usage": len(used) / len(share),
        "perplexity": float(np.exp(entropy)),
        "entropy": entropy / float(np.log(len(share))) if len(share) > 1 else 1.0,
        "gini": float(2 * (rank * share).sum() - len(share) - 1) / len(share),
    }


def collision_rate(codes: np.ndarray) -> float:
    """Return (N - number of distinct rows) / N for `codes`, integers [N, L]."""
    return 1 - len(collision_groups(codes)[1]) / len(codes)


def distortion(x: Rows, reconstruction: Rows) -> float | None:
    """Return sum |x_i - reconstruction_i|^2 / sum |x_i - mean(x)|^2 over the N items; 0 is perfect.

    Args:
        x: embeddings [N, D].
        reconstruction: [N, D].

    Returns:
        None if all items are equal: the denominator is 0.
    """
    error = sum(_squares(block - reconstruction[where]) for where, block in blocks(x))
    variance = _total_variance(x)
    return error / variance if variance else None


def distortion_by_level(x: Rows, quantizer: "Quantizer", codes: np.ndarray) -> list[float | None] | None:
    """Return the `distortion` of reconstructions from only the first 1, 2, ... L codes, as a list [L].

    Args:
        x: embeddings [N, D].
        quantizer: decodes.
        codes: integers [N, L].

    Returns:
        None if the quantizer cannot decode the first codes alone. An entry is None if all items are equal.
    """
    errors = np.zeros(quantizer.levels)
    for where, block in blocks(x):
        for level in range(quantizer.levels):
            part = quantizer.decode_first(codes[where, : level + 1])
            if part is None:
                return None
            errors[level] += _squares(block - part)
    variance = _total_variance(x)
    return [float(error / variance) if variance else None for error in errors]


def _total_variance(x: Rows) -> float:
    """Sum over the rows of their squared distance to the mean row."""
    mean = sum(block.sum(axis=0, dtype=np.float64) for _, block in blocks(x)) / len(x)
    return sum(_squares(block - mean.astype(np.float32)) for _, block in blocks(x))


def _squares(block: np.ndarray) -> float:
    return float((block * block).sum(dtype=np.float64))


def prefix_cohesion(x: Rows, codes: np.ndarray, seed: int) -> list[float | None]:
    """Return the mean cosine between two items with the same first 1, 2, ... L codes, as a list [L].

    Args:
        x: embeddings [N, D].
        codes: integers [N, L].
        seed: of the sample of `PAIRS` pairs, drawn at a level with more pairs than that.

    Returns:
        An entry is None at a level where no two items share the prefix.
    """
    rng = np.random.default_rng(seed)
    cohesion: list[float | None] = []
    for level in range(1, codes.shape[1] + 1):
        pairs = _pairs(codes[:, :level], rng)
        cohesion.append(_mean_cosine(x, *pairs) if len(pairs[0]) else None)
    return cohesion


def _pairs(codes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of items with equal `codes` [N, m] as two arrays of rows, int64 [P] each.

    Each unordered pair occurs once. If there are more than `PAIRS`, a random sample of `PAIRS`, with replacement.
    """
    group, sizes = collision_groups(codes)
    order = np.argsort(group, kind="stable")
    first = np.cumsum(sizes) - sizes
    ends = np.cumsum(sizes * (sizes - 1) // 2)
    number = np.arange(ends[-1]) if ends[-1] <= PAIRS else rng.integers(ends[-1], size=PAIRS)
    # a group numbers its pairs (i, j), i < j, as p = j (j - 1) / 2 + i; so j is the largest with j (j - 1) / 2 <= p
    inside = np.searchsorted(ends, number, side="right")
    p = number - (ends - sizes * (sizes - 1) // 2)[inside]
    j = ((1 + np.sqrt(1 + 8 * p.astype(np.float64))) / 2).astype(np.int64)
    j -= j * (j - 1) // 2 > p  # corrects a square root that was rounded up
    i = p - j * (j - 1) // 2
    return order[first[inside] + i], order[first[inside] + j]


def _mean_cosine(x: Rows, left: np.ndarray, right: np.ndarray) -> float:
    total = 0.0
    for start in range(0, len(left), 4096):
        a, b = (unit(np.asarray(x[rows[start : start + 4096]], np.float32)) for rows in (left, right))
        total += float((a * b).sum(dtype=np.float64))
    return total / len(left)


NEIGHBOURS = 20
"""k, the number of nearest neighbours per item."""


MAX_QUERIES = 1000
"""Most items whose neighbours are compared; if there are more, a seeded sample."""


PERSISTENCE = 0.9
"""p of rank-biased overlap: the weight of a rank divided by the weight of the rank before it."""


def nearest(x: Rows, queries: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Find the nearest neighbours, by cosine, of some rows of `x` among all its rows.

    Reads `x` block by block, so that no copy of all N rows is made.

    Args:
        x: vectors [N, D].
        queries: rows of `x`, integers [Q].
        k: number of neighbours.

    Returns:
        Rows of `x`, int64 [Q, min(k, N - 1)], nearest first, without the query itself.
    """
    import faiss

    k = min(k, len(x) - 1)
    asked = unit(np.asarray(x[queries], np.float32))
    scores = np.empty((len(queries), 0), np.float32)
    found = np.empty((len(queries), 0), np.int64)
    for where, block in blocks(x):
        near = min(k + 1, len(block))
        block_scores, rows = faiss.knn(asked, unit(block), near, metric=faiss.METRIC_INNER_PRODUCT)
        scores = np.hstack([scores, block_scores])
        found = np.hstack([found, rows + where.start])
        best = np.argsort(-scores, axis=1, kind="stable")[:, : k + 1]
        scores, found = np.take_along_axis(scores, best, 1), np.take_along_axis(found, best, 1)
    # if more than k other items have the query's vector, the query itself may be missing: drop the last one then
    is_self = found == queries[:, None]
    is_self[~is_self.any(axis=1), -1] = True
    return found[~is_self].reshape(len(queries), k)


def jaccard(before: np.ndarray, after: np.ndarray) -> float:
    """Return the Jaccard overlap of two lists of neighbours, intersection / union, mean over queries; 1 if k = 0.

    Args:
        before: items, integers [Q, k].
        after: the same, of the second list.
    """
    k = before.shape[1]
    if k == 0:
        return 1.0
    shared = _overlaps(before, after)[:, -1]
    return float((shared / (2 * k - shared)).mean())


def rank_biased_overlap(before: np.ndarray, after: np.ndarray, p: float = PERSISTENCE) -> float:
    """Return the rank-biased overlap of two ranked lists, mean over queries.

    It is 1 for equal lists and 0 for lists without a common item. It is the extrapolated RBO_ext, which assumes that
    the agreement at depth k also holds at greater depths (Webber, Moffat and Zobel 2010, "A similarity measure for
    indefinite rankings").

    Args:
        before: items, integers [Q, k], best first.
        after: the same, of the second list.
        p: persistence, 0 to 1; the larger, the more the lower ranks count.

    Returns:
        0 to 1; 1 if k = 0.
    """
    k = before.shape[1]
    if k == 0:
        return 1.0
    depth = np.arange(1, k + 1)
    agreement = _overlaps(before, after) / depth
    overlap = agreement[:, -1] * p**k + (1 - p) / p * (agreement * p**depth).sum(axis=1)
    return float(overlap.mean())


def _overlaps(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the number of items that the first 1, 2, ... k places of both lists share, int64 [Q, k]."""
    k = before.shape[1]
    place = np.arange(k)
    # an item at place i of one list and j of the other is shared from depth max(i, j) on
    deeper = np.maximum(place[:, None], place[None, :])
    common = np.zeros((len(before), k), np.int64)
    query, i, j = np.nonzero(before[:, :, None] == after[:, None, :])
    np.add.at(common, (query, deeper[i, j]), 1)
    return common.cumsum(axis=1)


def companions(behaviour: "Behaviour", rows: np.ndarray) -> list[np.ndarray]:
    """Return, for each of the items `rows`, integers [Q], the items that occur together with it in the training log."""
    pairs = behaviour.pairs
    return [pairs.indices[pairs.indptr[row] : pairs.indptr[row + 1]] for row in rows]


def embedding_hit_rate(companions: list[np.ndarray], neighbours: np.ndarray) -> float:
    """Return the share of an item's companions that are among its nearest neighbours, mean over items.

    Args:
        companions: Q arrays of items, none of them empty.
        neighbours: items, int64 [Q, k].
    """
    shares = [np.isin(known, near).mean() for known, near in zip(companions, neighbours, strict=True)]
    return float(np.mean(shares))
