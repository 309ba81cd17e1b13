"""Collisions (items with the same codes): how to count them and how each `--tokenize.collisions` resolves them.

`arrivals.py` gives semantic IDs to items that are added later.

A last token with the item's rank inside its collision group is from TIGER (arXiv 2305.05065), the rank by popularity
from MMGRec (2404.16555), the Sinkhorn re-assignment at the last level from LC-Rec (2311.09049).
"""

import math
from itertools import groupby
from typing import TYPE_CHECKING, assert_never

import numpy as np

from llmrec.console import track
from llmrec.errors import UserError
from llmrec.quantize.config import Collisions

if TYPE_CHECKING:
    from llmrec.quantize.base import Quantizer

SMALLEST_LEVEL = 8
"""Minimum size of the dedup level; it leaves free ranks for items that are added later."""


ROUNDS = 20
"""Maximum number of rounds of the Sinkhorn re-assignment, as in LC-Rec."""


EPSILON = 0.003
"""Entropy strength of the Sinkhorn re-assignment, as in LC-Rec."""


TIE = 1e-9
"""Two entries of a transport plan count as equal if their relative difference is below this (rounding error)."""


COST_ROWS = 4_096
"""Number of items whose costs [COST_ROWS, C] at the last level are in memory at a time."""


def resolve_collisions(
    strategy: Collisions,
    codes: np.ndarray,
    level_sizes: list[int],
    quantizer: "Quantizer",
    x: np.ndarray,
    counts: np.ndarray | None = None,
) -> tuple[np.ndarray, list[int]]:
    """Turn the codes of the quantizer into semantic IDs, which are unique except with `share`.

    Args:
        strategy: how collisions are resolved.
        codes: codes of the quantizer, int32 [N, L].
        level_sizes: C of each level [L].
        quantizer: the fitted quantizer.
        x: embeddings of the items, floats [N, D].
        counts: training events per item, int64 [N]; only for `dedup-popularity`.

    Returns:
        The semantic IDs, int32 [N, L], or [N, L + 1] with a dedup level; and the size of each of their levels.

    Raises:
        UserError: `nearest-free` with more items than tuples of codes.
        ValueError: `dedup-popularity` without `counts`.
    """
    match strategy:
        case "share":
            return codes, level_sizes
        case "dedup":
            return with_dedup_level(codes, level_sizes)
        case "dedup-popularity":
            if counts is None:
                raise ValueError("dedup-popularity ranks items by their training events; counts is None")
            return with_dedup_level(codes, level_sizes, counts)
        case "sinkhorn":
            codes = sinkhorn_rounds(codes, quantizer, x)
            return with_dedup_level(codes, level_sizes) if excess(codes) else (codes, level_sizes)
        case "nearest-free":
            return nearest_free_code(codes, quantizer, x), level_sizes
        case _:
            assert_never(strategy)


def collision_groups(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group the items with equal `codes` [N, L].

    Returns:
        The group of each item, int64 [N], and the size of each group, int64 [G]. Groups are numbered in the
        lexicographic order of their codes.
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
    """N - (number of distinct rows of `codes` [N, L]): the number of items that collide with an earlier item."""
    return len(codes) - len(collision_groups(codes)[1])


def members(group: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
    """The item rows (int64 [group size]) of each chosen group, in row order.

    Args:
        group: the group of each item, int64 [N], from `collision_groups`.
        chosen: whether to return the group, bool [G].
    """
    rows = np.flatnonzero(chosen[group])
    rows = rows[np.argsort(group[rows], kind="stable")]
    return np.split(rows, np.flatnonzero(np.diff(group[rows])) + 1) if len(rows) else []


def ranks(codes: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Rank of each item (int32 [N]) among the items with the same codes [N, L], from 0.

    Items are ranked by `counts` (int64 [N]), highest first; without counts, or if they are equal, the earlier row
    comes first.
    """
    group, sizes = collision_groups(codes)
    order = np.argsort(group, kind="stable") if counts is None else np.lexsort((-counts, group))
    first = np.cumsum(sizes) - sizes
    rank = np.empty(len(codes), np.int32)
    rank[order] = np.arange(len(codes)) - np.repeat(first, sizes)
    return rank


def dedup(codes: np.ndarray, counts: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Append the dedup level to `codes` [N, L]; its code is the item's rank (see `ranks`, which also uses `counts`).

    Returns:
        Codes int32 [N, L + 1], all rows distinct, and the size of the dedup level: the smallest power of two that is
        at least the size of the largest group, and at least `SMALLEST_LEVEL`.
    """
    rank = ranks(codes, counts)
    return np.column_stack([codes, rank]).astype(np.int32), max(SMALLEST_LEVEL, 1 << int(rank.max()).bit_length())


def with_dedup_level(
    codes: np.ndarray, level_sizes: list[int], counts: np.ndarray | None = None
) -> tuple[np.ndarray, list[int]]:
    """`codes` [N, L] with a dedup level, int32 [N, L + 1], and the sizes of the L + 1 levels."""
    unique, size = dedup(codes, counts)
    return unique, [*level_sizes, size]


def sinkhorn_rounds(codes: np.ndarray, quantizer: "Quantizer", x: np.ndarray) -> np.ndarray:
    """Codes (int32 [N, L]) after LC-Rec's rounds. Each round assigns new last codes to the items that collide.

    Items without a collision keep their codes. The result is the round with the fewest collisions, which may be the
    start `codes` [N, L], so collisions never increase.

    In a small group, the maximum of an item's row of the plan is often shared by many codes, and LC-Rec's argmax then
    depends on rounding. Here the nearest of these codes wins.
    """
    best, fewest = codes, excess(codes)
    for _ in track(range(ROUNDS), "sinkhorn", unit="rounds"):
        if fewest == 0:
            break
        moved = _sinkhorn_round(codes, quantizer, x)
        if (moved == codes).all():  # then no later round changes anything
            break
        codes = moved
        if (left := excess(codes)) < fewest:
            best, fewest = codes, left
    return best


def _sinkhorn_round(codes: np.ndarray, quantizer: "Quantizer", x: np.ndarray) -> np.ndarray:
    """A copy of `codes` [N, L] where a uniform mapping per colliding group spreads its items over the last level."""
    import torch

    from llmrec.quantize.classical.kmeans import uniform_mapping

    group, sizes = collision_groups(codes)
    codes = codes.copy()
    for batch in batches(sorted(members(group, sizes > 1), key=len)):
        for _, alike in groupby(batch, key=len):  # groups of the same size are mapped in one batch
            rows = np.stack(list(alike))
            costs = torch.from_numpy(quantizer.last_level_costs(x[rows.ravel()], codes[rows.ravel(), :-1]))
            costs = costs.unflatten(0, rows.shape)
            plan = uniform_mapping(costs, EPSILON)
            best = plan >= plan.amax(dim=-1, keepdim=True) * (1 - TIE)
            codes[rows, -1] = costs.where(best, torch.inf).argmin(dim=-1).numpy()
    return codes


def batches(groups: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Pack the groups (rows, int64) into lists of about `COST_ROWS` rows in total; no group is split."""
    packed: list[list[np.ndarray]] = []
    room = 0
    for group in groups:
        if not packed or len(group) > room:
            packed.append([])
            room = COST_ROWS
        packed[-1].append(group)
        room -= len(group)
    return packed


HOMELESS = -1
"""The last code of an item that has no free code yet."""


def nearest_free_code(codes: np.ndarray, quantizer: "Quantizer", x: np.ndarray) -> np.ndarray:
    """Codes (int32 [N, L]) without collisions, close to the `codes` [N, L] of `x` [N, D].

    Items without a collision keep their codes.

    Raises:
        UserError: there are more items than tuples of codes.
    """
    sizes = quantizer.level_sizes
    if len(codes) > math.prod(sizes):
        raise UserError(
            f"--tokenize.collisions nearest-free: {len(codes)} items, but only {math.prod(sizes)} tuples of codes; "
            "raise --tokenize.codes or --tokenize.levels, or choose dedup"
        )
    codes = codes.copy()
    codes[:, -1] = _last_codes(codes, quantizer, x)
    unassigned = np.flatnonzero(codes[:, -1] == HOMELESS)
    for depth in range(len(sizes) - 2, -1, -1):
        unassigned = _move_below(depth, unassigned, codes, quantizer, x)
    return codes


def _last_codes(codes: np.ndarray, quantizer: "Quantizer", x: np.ndarray) -> np.ndarray:
    """Last codes [N], distinct under each prefix of L-1 codes; HOMELESS for items for which no last code is left."""
    group, sizes = collision_groups(codes)
    colliding = sizes[group] > 1
    prefix, prefix_sizes = collision_groups(codes[:, :-1])
    crowded = np.zeros(len(prefix_sizes), bool)
    crowded[prefix[colliding]] = True
    last = codes[:, -1].copy()
    for batch in batches(members(prefix, crowded)):
        moving = [under[colliding[under]] for under in batch]
        rows = np.concatenate(moving)
        costs = quantizer.last_level_costs(x[rows], codes[rows, :-1])
        ends = np.cumsum([len(some) for some in moving])
        for under, some, table in zip(batch, moving, np.split(costs, ends[:-1]), strict=True):
            free = np.setdiff1d(np.arange(costs.shape[1]), codes[under, -1])
            last[some] = _assign(table, codes[some, -1], free)
    return last


def _assign(costs: np.ndarray, own: np.ndarray, free: np.ndarray) -> np.ndarray:
    """New last codes [m] of the colliding items under one prefix, from their `costs` [m, C] and `own` codes [m].

    For each code, the nearest item keeps it. The other items get the `free` codes with the lowest total cost, one
    each; if there are too few free codes, the remaining items get HOMELESS.
    """
    from scipy.optimize import linear_sum_assignment

    nearest_first = np.lexsort((costs[np.arange(len(own)), own], own))
    keeps = np.zeros(len(own), bool)
    keeps[nearest_first[np.unique(own[nearest_first], return_index=True)[1]]] = True
    movers = np.flatnonzero(~keeps)
    new = np.where(keeps, own, HOMELESS)
    moved, taken = linear_sum_assignment(costs[np.ix_(movers, free)])
    new[movers[moved]] = free[taken]
    return new


def _move_below(
    depth: int, unassigned: np.ndarray, codes: np.ndarray, quantizer: "Quantizer", x: np.ndarray
) -> np.ndarray:
    """Give each item of `unassigned` a free tuple with its first `depth` codes, in place; return the rest."""
    left = []
    room = math.prod(quantizer.level_sizes[depth:])
    prefix, sizes = collision_groups(codes[unassigned, :depth])
    for rows in (unassigned[some] for some in members(prefix, sizes > 0)):
        sharing = (codes[:, :depth] == codes[rows[0], :depth]).all(axis=1)
        settled = np.flatnonzero(sharing & (codes[:, -1] != HOMELESS))
        fitting = room - len(settled)
        for row in rows[:fitting]:
            codes[row] = nearest_free_codes(x[row], codes[row], depth, codes[settled], quantizer)
            settled = np.append(settled, row)
        left.append(rows[fitting:])
    return np.concatenate([unassigned[:0], *left])


def nearest_free_codes(
    x: np.ndarray, own: np.ndarray, depth: int, taken: np.ndarray, quantizer: "Quantizer"
) -> np.ndarray:
    """A free tuple of codes [L] near the item `x` [D] that begins with the first `depth` of its `own` codes.

    The last two levels are searched exactly. The levels above them are chosen one by one: at each level, among the
    codes that still have a free tuple below them, the one with the lowest cost over all last codes, where the codes of
    the levels in between are those of `own`.

    Args:
        x: embedding of the item, floats [D].
        own: codes of the item, int [L].
        depth: number of levels that keep the code of `own`.
        taken: the tuples with this prefix that are not free, int [n, L], all distinct; at least one tuple with this
            prefix must be free.
        quantizer: the fitted quantizer.
    """
    sizes = quantizer.level_sizes
    prefix = own[:-1].copy()
    for level in range(depth, len(sizes) - 1):
        costs = _costs_of_codes(x, prefix, level, quantizer)
        if level == len(sizes) - 2:
            costs[taken[:, -2], taken[:, -1]] = np.inf
            return np.array([*prefix[:-1], *np.unravel_index(costs.argmin(), costs.shape)])
        full = np.bincount(taken[:, level], minlength=sizes[level]) == math.prod(sizes[level + 1 :])
        prefix[level] = np.where(full, np.inf, costs.min(axis=1)).argmin()
        taken = taken[taken[:, level] == prefix[level]]
    last = quantizer.last_level_costs(x[None], prefix[None])[0]
    last[taken[:, -1]] = np.inf
    return np.array([*prefix, last.argmin()])


def _costs_of_codes(x: np.ndarray, prefix: np.ndarray, level: int, quantizer: "Quantizer") -> np.ndarray:
    """Costs [C_level, C_last] of each code of `level` with each last code; `prefix` [L-1] has the other codes."""
    size = quantizer.level_sizes[level]
    prefixes = np.tile(prefix, (size, 1))
    prefixes[:, level] = np.arange(size)
    return quantizer.last_level_costs(np.tile(x, (size, 1)), prefixes)
