"""The figures of the report on semantic IDs: use, collisions, distortion, and how far neighbourhoods are kept.

Vectors are read a part at a time, so that a report on a million items copies none of them whole.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmrec.quantize.base import BLOCK, Quantizer
from llmrec.quantize.collisions import collision_groups

if TYPE_CHECKING:
    from llmrec.collaborative.behaviour import Behaviour


class Rows(Protocol):
    """N vectors of D dimensions: an array, perhaps memory-mapped, or what makes the rows it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


class Reconstruction:
    """What `quantizer` decodes of `codes` [N, L], row by row when asked."""

    def __init__(self, quantizer: Quantizer, codes: np.ndarray) -> None:
        self._quantizer = quantizer
        self._codes = codes

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return self._quantizer.decode(self._codes[rows])


def blocks(x: Rows) -> Iterator[tuple[slice, np.ndarray]]:
    """Where each block stands in `x` [N, D], and its rows, float32."""
    for start in range(0, len(x), BLOCK):
        where = slice(start, min(start + BLOCK, len(x)))
        yield where, np.asarray(x[where], np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    """The rows of `x` [N, D] scaled to length 1; a row of zeros stays."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


PAIRS = 20_000
"""Most pairs of items per level whose cosine is taken."""


def code_figures(codes: np.ndarray, level_sizes: list[int]) -> dict[str, Any]:
    """Usage, perplexity, normalised entropy and Gini per level, and collisions, of codes [N, L].

    Of the shares p of items per code: perplexity exp(H) with H = -sum p log p, entropy H / log C, and Gini, 0 for even
    use and 1 - 1/C for a single code. `collision_groups` maps the size of a group of items with equal codes to the
    number of such groups.
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
    """How evenly `counts` (integers [C], items per code) are spread."""
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
    """(N - distinct rows) / N of codes [N, L]."""
    return 1 - len(collision_groups(codes)[1]) / len(codes)


def distortion(x: Rows, reconstruction: Rows) -> float | None:
    """Mean squared error of the reconstruction [N, D] over the variance of `x` [N, D]; 0 is perfect.

    None where all items are equal, which leaves nothing to compare with.
    """
    error = sum(_squares(block - reconstruction[where]) for where, block in blocks(x))
    variance = _total_variance(x)
    return error / variance if variance else None


def distortion_by_level(x: Rows, quantizer: "Quantizer", codes: np.ndarray) -> list[float | None] | None:
    """`distortion` by the first 1, 2, ... L codes of `codes` [N, L] alone [L].

    None for a quantizer whose first codes reconstruct nothing without the rest.
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
    """Squared distance of all rows to their mean."""
    mean = sum(block.sum(axis=0, dtype=np.float64) for _, block in blocks(x)) / len(x)
    return sum(_squares(block - mean.astype(np.float32)) for _, block in blocks(x))


def _squares(block: np.ndarray) -> float:
    return float((block * block).sum(dtype=np.float64))


def prefix_cohesion(x: Rows, codes: np.ndarray, seed: int) -> list[float | None]:
    """Mean cosine between two items that share their first 1, 2, ... L codes [L].

    Over all such pairs, or a seeded sample of `PAIRS`; None at a level where no two items share theirs.
    """
    rng = np.random.default_rng(seed)
    cohesion: list[float | None] = []
    for level in range(1, codes.shape[1] + 1):
        pairs = _pairs(codes[:, :level], rng)
        cohesion.append(_mean_cosine(x, *pairs) if len(pairs[0]) else None)
    return cohesion


def _pairs(codes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows i < j (int64 [P] each) with equal `codes` [N, m]: each unordered pair once, or `PAIRS` drawn at random."""
    group, sizes = collision_groups(codes)
    order = np.argsort(group, kind="stable")
    first = np.cumsum(sizes) - sizes
    ends = np.cumsum(sizes * (sizes - 1) // 2)
    number = np.arange(ends[-1]) if ends[-1] <= PAIRS else rng.integers(ends[-1], size=PAIRS)
    # pair p of a group: the largest j with j (j - 1) / 2 <= p, and i = p - j (j - 1) / 2
    inside = np.searchsorted(ends, number, side="right")
    p = number - (ends - sizes * (sizes - 1) // 2)[inside]
    j = ((1 + np.sqrt(1 + 8 * p.astype(np.float64))) / 2).astype(np.int64)
    j -= j * (j - 1) // 2 > p  # where the square root was rounded up
    i = p - j * (j - 1) // 2
    return order[first[inside] + i], order[first[inside] + j]


def _mean_cosine(x: Rows, left: np.ndarray, right: np.ndarray) -> float:
    total = 0.0
    for start in range(0, len(left), 4096):
        a, b = (unit(np.asarray(x[rows[start : start + 4096]], np.float32)) for rows in (left, right))
        total += float((a * b).sum(dtype=np.float64))
    return total / len(left)


NEIGHBOURS = 20
"""k, length of the lists."""


MAX_QUERIES = 1000
"""Items whose neighbours are compared; a seeded sample in a larger catalogue."""


PERSISTENCE = 0.9
"""p of rank-biased overlap: the weight of each place against the one above it."""


def nearest(x: Rows, queries: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Rows of `x` [N, D] nearest by cosine to its rows `queries` [Q], nearest first, themselves left out.

    Returns int64 [Q, min(k, N - 1)]. Streams over `x`: always against all N, never a copy of them.
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
    # among k + 1 items with equal vectors the item itself may be missing: then the last one goes
    is_self = found == queries[:, None]
    is_self[~is_self.any(axis=1), -1] = True
    return found[~is_self].reshape(len(queries), k)


def jaccard(before: np.ndarray, after: np.ndarray) -> float:
    """Mean Jaccard overlap of two lists of neighbours [Q, k] each; 1 where there are no neighbours to lose."""
    k = before.shape[1]
    if k == 0:
        return 1.0
    shared = _overlaps(before, after)[:, -1]
    return float((shared / (2 * k - shared)).mean())


def rank_biased_overlap(before: np.ndarray, after: np.ndarray, p: float = PERSISTENCE) -> float:
    """Mean rank-biased overlap of two ranked lists [Q, k] each: 1 for equal lists, 0 for lists without a common item.

    The estimate that takes the agreement at depth k to hold further down (RBO_ext; Webber, Moffat and Zobel 2010,
    "A similarity measure for indefinite rankings").
    """
    k = before.shape[1]
    if k == 0:
        return 1.0
    depth = np.arange(1, k + 1)
    agreement = _overlaps(before, after) / depth
    overlap = agreement[:, -1] * p**k + (1 - p) / p * (agreement * p**depth).sum(axis=1)
    return float(overlap.mean())


def _overlaps(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Items common to the first 1, 2, ... k of both lists, int64 [Q, k]."""
    k = before.shape[1]
    place = np.arange(k)
    # an item at places i and j counts from depth max(i, j) on
    deeper = np.maximum(place[:, None], place[None, :])
    common = np.zeros((len(before), k), np.int64)
    query, i, j = np.nonzero(before[:, :, None] == after[:, None, :])
    np.add.at(common, (query, deeper[i, j]), 1)
    return common.cumsum(axis=1)


def companions(behaviour: "Behaviour", rows: np.ndarray) -> list[np.ndarray]:
    """Items that occur together with each of the items `rows` [Q] in the training log."""
    pairs = behaviour.pairs
    return [pairs.indices[pairs.indptr[row] : pairs.indptr[row + 1]] for row in rows]


def embedding_hit_rate(companions: list[np.ndarray], neighbours: np.ndarray) -> float:
    """Mean share of an item's companions (Q arrays, none empty) among its nearest neighbours [Q, k]."""
    shares = [np.isin(known, near).mean() for known, near in zip(companions, neighbours, strict=True)]
    return float(np.mean(shares))
