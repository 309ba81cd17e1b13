"""Collisions settled by moving items to the nearest free codes (`--tokenize.collisions nearest-free`).

Of the items on one tuple of codes the nearest keeps it. The others under its prefix move to free last codes at the
least total cost (an optimal assignment). Where a prefix has more items than last codes, what is left over takes the
nearest free tuple further up, with as few levels changed as possible.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from llmrec.errors import UserError
from llmrec.quantize.collisions import batches, collision_groups, members

if TYPE_CHECKING:
    from llmrec.quantize.base import Quantizer

HOMELESS = -1


def nearest_free(codes: np.ndarray, quantizer: "Quantizer", x: np.ndarray) -> np.ndarray:
    """Codes (int32 [N, L]) without a collision, near to the `codes` [N, L] of `x` [N, D].

    An item that collides with nobody stays.

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
    homeless = np.flatnonzero(codes[:, -1] == HOMELESS)
    for depth in range(len(sizes) - 2, -1, -1):
        homeless = _move_below(depth, homeless, codes, quantizer, x)
    return codes


def _last_codes(codes: np.ndarray, quantizer: "Quantizer", x: np.ndarray) -> np.ndarray:
    """Last codes [N], no two equal under one prefix; HOMELESS for items beyond the number of last codes."""
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

    The nearest item of each code keeps it; as many others as there are `free` codes take one each, at the least
    total cost; HOMELESS for the rest.
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
    depth: int, homeless: np.ndarray, codes: np.ndarray, quantizer: "Quantizer", x: np.ndarray
) -> np.ndarray:
    """Give rows of `homeless` a free tuple that shares their first `depth` codes, in place; the rows still without."""
    left = []
    room = math.prod(quantizer.level_sizes[depth:])
    prefix, sizes = collision_groups(codes[homeless, :depth])
    for rows in (homeless[some] for some in members(prefix, sizes > 0)):
        sharing = (codes[:, :depth] == codes[rows[0], :depth]).all(axis=1)
        settled = np.flatnonzero(sharing & (codes[:, -1] != HOMELESS))
        fitting = room - len(settled)
        for row in rows[:fitting]:
            codes[row] = nearest_free_tuple(x[row], codes[row], depth, codes[settled], quantizer)
            settled = np.append(settled, row)
        left.append(rows[fitting:])
    return np.concatenate([homeless[:0], *left])


def nearest_free_tuple(
    x: np.ndarray, own: np.ndarray, depth: int, taken: np.ndarray, quantizer: "Quantizer"
) -> np.ndarray:
    """The tuple [L] for an item `x` [D] that begins with the first `depth` of its `own` codes [L] and is not `taken`.

    Exact over the last two levels. Above them, level by level: the code whose best last code costs least, the levels
    between left as they are, among the codes with a free tuple below. `taken` [n, L] has the tuples that begin so and
    are not free, each once, and not all there are.
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
    """Costs [C_level, C_last] of every code of `level` with every last code, the rest of `prefix` [L-1] as it is."""
    size = quantizer.level_sizes[level]
    prefixes = np.tile(prefix, (size, 1))
    prefixes[:, level] = np.arange(size)
    return quantizer.last_level_costs(np.tile(x, (size, 1)), prefixes)
