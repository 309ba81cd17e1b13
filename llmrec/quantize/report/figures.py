"""Figures of the codes themselves, and of what they keep of the embeddings."""

from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.quantize.collisions import collision_groups
from llmrec.quantize.report.rows import Rows, blocks, unit

if TYPE_CHECKING:
    from llmrec.quantize.base import Quantizer

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
