"""Items with the same codes: counting them, and what each `--tokenize.collisions` does about them.

The rank inside the collision group as last token is TIGER's (arXiv 2305.05065), by popularity MMGRec's (2404.16555),
Sinkhorn re-assignment at the last level LC-Rec's (2311.09049).
"""

from itertools import groupby
from typing import TYPE_CHECKING, assert_never

import numpy as np

from llmrec.console import track
from llmrec.quantize.config import Collisions

if TYPE_CHECKING:
    from llmrec.quantize.base import Quantizer

SMALLEST_LEVEL = 8
"""Least size of the dedup level, which leaves room for items added later."""
ROUNDS = 20
"""Most rounds of Sinkhorn re-assignment, LC-Rec's."""
EPSILON = 0.003
"""Strength of that Sinkhorn mapping, LC-Rec's."""
TIE = 1e-9
"""Shares of a plan that differ by less, relatively, are equal but for rounding."""
COST_ROWS = 4_096
"""Items whose costs of the last level's codes are held at a time."""


def settle(
    strategy: Collisions,
    codes: np.ndarray,
    level_sizes: list[int],
    quantizer: "Quantizer",
    x: np.ndarray,
    counts: np.ndarray | None = None,
) -> tuple[np.ndarray, list[int]]:
    """The semantic IDs of the items `x` [N, D] whose quantizer gave `codes` [N, L], and the size of each level.

    Returns int32 [N, L] or, where a dedup level tells items apart, [N, L + 1]. All rows differ afterwards, except
    under `share`. `counts` (int64 [N], training events per item) is for `dedup-popularity` only.

    Raises:
        UserError: `nearest-free` with more items than tuples of codes.
    """
    match strategy:
        case "share":
            return codes, level_sizes
        case "dedup":
            return _with_dedup_level(codes, level_sizes)
        case "dedup-popularity":
            if counts is None:
                raise ValueError("dedup-popularity ranks items by their training events; counts is None")
            return _with_dedup_level(codes, level_sizes, counts)
        case "sinkhorn":
            codes = sinkhorn_rounds(codes, quantizer, x)
            return _with_dedup_level(codes, level_sizes) if excess(codes) else (codes, level_sizes)
        case "nearest-free":
            from llmrec.quantize.nearest_free import nearest_free

            return nearest_free(codes, quantizer, x), level_sizes
        case _:
            assert_never(strategy)


def collision_groups(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group of each item (int64 [N]) and size of each group (int64 [G]): items with equal codes [N, L].

    Groups are numbered in the order of their codes.
    """
    if codes.shape[1] == 0:
        return np.zeros(len(codes), np.int64), np.array([len(codes)])
    order = np.lexsort(codes.T[::-1])
    first = np.ones(len(codes), bool)
    first[1:] = (codes[order[1:]] != codes[order[:-1]]).any(axis=1)
    group = np.empty(len(codes), np.int64)
    group[order] = np.cumsum(first) - 1
    return group, np.bincount(group)


def excess(codes: np.ndarray) -> int:
    """Items beyond the first of each distinct row of `codes` [N, L]: N less the number of distinct rows."""
    return len(codes) - len(collision_groups(codes)[1])


def members(group: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
    """Rows of each chosen group, in row order: `group` int64 [N] as `collision_groups` gives it, `chosen` bool [G]."""
    rows = np.flatnonzero(chosen[group])
    rows = rows[np.argsort(group[rows], kind="stable")]
    return np.split(rows, np.flatnonzero(np.diff(group[rows])) + 1) if len(rows) else []


def ranks(codes: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Rank of each item (int32 [N]) among the items with the same codes [N, L], from 0.

    The item with the most `counts` (int64 [N]) comes first; without counts, or where they are equal, the earlier row.
    """
    group, sizes = collision_groups(codes)
    order = np.argsort(group, kind="stable") if counts is None else np.lexsort((-counts, group))
    first = np.cumsum(sizes) - sizes
    rank = np.empty(len(codes), np.int32)
    rank[order] = np.arange(len(codes)) - np.repeat(first, sizes)
    return rank


def dedup(codes: np.ndarray, counts: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Codes with the dedup level appended (int32 [N, L + 1], all rows distinct), and that level's size.

    The new code is the item's rank (see `ranks`). The level's size is the least power of two that holds the largest
    group, at least `SMALLEST_LEVEL`.
    """
    rank = ranks(codes, counts)
    return np.column_stack([codes, rank]).astype(np.int32), max(SMALLEST_LEVEL, 1 << int(rank.max()).bit_length())


def _with_dedup_level(
    codes: np.ndarray, level_sizes: list[int], counts: np.ndarray | None = None
) -> tuple[np.ndarray, list[int]]:
    unique, size = dedup(codes, counts)
    return unique, [*level_sizes, size]


def sinkhorn_rounds(codes: np.ndarray, quantizer: "Quantizer", x: np.ndarray) -> np.ndarray:
    """Codes (int32 [N, L]) after LC-Rec's rounds, each of which re-encodes the groups that collide at its start.

    An item that collides with nobody stays; only last codes change. Of all rounds, the greedy start included, the one
    with the fewest collisions counts, so that there are never more than before.

    In a small group many codes hold an item's greatest share of the plan, and LC-Rec's argmax picks among them by
    rounding; here the nearest of them counts.
    """
    best, fewest = codes, excess(codes)
    for _ in track(range(ROUNDS), "sinkhorn"):
        if fewest == 0:
            break
        moved = _sinkhorn_round(codes, quantizer, x)
        if (moved == codes).all():  # and so would be every round from here on
            break
        codes = moved
        if (left := excess(codes)) < fewest:
            best, fewest = codes, left
    return best


def _sinkhorn_round(codes: np.ndarray, quantizer: "Quantizer", x: np.ndarray) -> np.ndarray:
    """A copy of `codes` [N, L] with each colliding group spread over the last level by its own uniform mapping."""
    import torch

    from llmrec.quantize.sinkhorn import uniform_mapping

    group, sizes = collision_groups(codes)
    codes = codes.copy()
    for batch in batches(sorted(members(group, sizes > 1), key=len)):
        for _, alike in groupby(batch, key=len):  # groups of one size go through the mapping together
            rows = np.stack(list(alike))
            costs = torch.from_numpy(quantizer.last_level_costs(x[rows.ravel()], codes[rows.ravel(), :-1]))
            costs = costs.unflatten(0, rows.shape)
            plan = uniform_mapping(costs, EPSILON)
            best = plan >= plan.amax(dim=-1, keepdim=True) * (1 - TIE)
            codes[rows, -1] = costs.where(best, torch.inf).argmin(dim=-1).numpy()
    return codes


def batches(groups: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Whole groups of rows, packed into lists of about `COST_ROWS` rows."""
    packed: list[list[np.ndarray]] = []
    room = 0
    for group in groups:
        if not packed or len(group) > room:
            packed.append([])
            room = COST_ROWS
        packed[-1].append(group)
        room -= len(group)
    return packed
