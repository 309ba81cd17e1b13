"""Items with the same codes: counting them, and telling them apart by one more level.

The rank inside the collision group as last token is TIGER's (arXiv 2305.05065).
"""

import numpy as np

SMALLEST_LEVEL = 8
"""Least size of the dedup level, which leaves room for items added later."""


def collision_groups(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group of each item (int64 [N]) and size of each group (int64 [G]): items with equal codes [N, L]."""
    _, group, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return group.reshape(-1), sizes


def ranks(codes: np.ndarray) -> np.ndarray:
    """Rank of each item (int32 [N]) among the items with the same codes [N, L], in row order from 0."""
    group, sizes = collision_groups(codes)
    order = np.argsort(group, kind="stable")
    first = np.cumsum(sizes) - sizes
    rank = np.empty(len(codes), np.int32)
    rank[order] = np.arange(len(codes)) - np.repeat(first, sizes)
    return rank


def dedup(codes: np.ndarray) -> tuple[np.ndarray, int]:
    """Codes with the dedup level appended (int32 [N, L + 1], all rows distinct), and that level's size.

    The size is the least power of two that holds the largest group, at least `SMALLEST_LEVEL`.
    """
    rank = ranks(codes)
    unique = np.column_stack([codes, rank]).astype(np.int32)
    assert len(np.unique(unique, axis=0)) == len(codes), "the dedup level left two items with equal codes"
    return unique, max(SMALLEST_LEVEL, 1 << int(rank.max()).bit_length())
