"""Items with the same codes: counting them, and what each `--tokenize.collisions` does about them.

The rank inside the collision group as last token is TIGER's (arXiv 2305.05065), by popularity MMGRec's (2404.16555),
Sinkhorn re-assignment at the last level LC-Rec's (2311.09049).
"""

import math
from collections import defaultdict
from itertools import groupby
from typing import TYPE_CHECKING, assert_never

import numpy as np

from llmrec.console import track
from llmrec.errors import UserError
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


def resolve_collisions(
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
            return nearest_free_code(codes, quantizer, x), level_sizes
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

    from llmrec.quantize.classical.kmeans import uniform_mapping

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


HOMELESS = -1


def nearest_free_code(codes: np.ndarray, quantizer: "Quantizer", x: np.ndarray) -> np.ndarray:
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
    unassigned = np.flatnonzero(codes[:, -1] == HOMELESS)
    for depth in range(len(sizes) - 2, -1, -1):
        unassigned = _move_below(depth, unassigned, codes, quantizer, x)
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
    depth: int, unassigned: np.ndarray, codes: np.ndarray, quantizer: "Quantizer", x: np.ndarray
) -> np.ndarray:
    """Give each row of `unassigned` a free tuple with the same first `depth` codes, in place; returns the rest."""
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


Codes = tuple[int, ...]


def place(
    strategy: Collisions,
    taken: np.ndarray,
    level_sizes: list[int],
    codes: np.ndarray,
    quantizer: "Quantizer",
    x: np.ndarray,
) -> np.ndarray:
    """The semantic IDs (int32 [n, L']) of arriving items, distinct and not `taken`, except under `share`.

    One item after the other takes its place, so that it is the same whether they come together or one by one.

    Args:
        strategy: what the others' collisions were settled by.
        taken: semantic IDs int [N, L'] of the items that are there; L' is L, or L + 1 with a dedup level.
        level_sizes: L' of them.
        codes: what the quantizer gave the arriving items, int [n, L].
        quantizer: the fitted one.
        x: the arriving items' embeddings, floats [n, D].

    Raises:
        UserError: there is no free semantic ID left.
    """
    if strategy == "share":
        return codes
    shelves = _Shelves(taken, level_sizes, quantizer)
    placed = [shelves.put(tuple(own), vector) for own, vector in zip(codes.tolist(), x, strict=True)]
    return np.array(placed, np.int32).reshape(len(codes), len(level_sizes))


class _Shelves:
    """Which ranks of which codes are taken; codes of L levels have as many ranks as the dedup level has codes, or 1."""

    def __init__(self, taken: np.ndarray, level_sizes: list[int], quantizer: "Quantizer") -> None:
        self.quantizer = quantizer
        self.levels = quantizer.levels
        self.room = math.prod(level_sizes[self.levels :])
        self.items, self.tuples = len(taken), math.prod(level_sizes)
        self.ranked = len(level_sizes) > self.levels
        self.ranks: dict[Codes, set[int]] = defaultdict(set)
        for semantic_id in taken.tolist():
            self.ranks[tuple(semantic_id[: self.levels])].add(semantic_id[-1] if self.ranked else 0)
        full = [codes for codes, ranks in self.ranks.items() if len(ranks) == self.room]
        self.full = np.array(full, np.int64).reshape(len(full), self.levels)

    def put(self, codes: Codes, x: np.ndarray) -> Codes:
        """The semantic ID that an item `x` [D] of these `codes` gets; taken from now on."""
        if len(self.ranks[codes]) == self.room:
            codes = self._nearest_with_room(np.array(codes), x)
        ranks = self.ranks[codes]
        rank = next(rank for rank in range(self.room) if rank not in ranks)
        ranks.add(rank)
        self.items += 1
        if len(ranks) == self.room:
            self.full = np.vstack([self.full, codes])
        return (*codes, rank) if self.ranked else codes

    def _nearest_with_room(self, own: np.ndarray, x: np.ndarray) -> Codes:
        """The nearest codes with a free rank, sharing as many of the first `own` codes [L] as may be."""
        sizes = self.quantizer.level_sizes
        for depth in range(self.levels - 1, -1, -1):
            alike = self.full[(self.full[:, :depth] == own[:depth]).all(axis=1)]
            if len(alike) < math.prod(sizes[depth:]):
                return tuple(nearest_free_codes(x, own, depth, alike, self.quantizer).tolist())
        raise UserError(
            f"full codebook: all {self.tuples} semantic IDs are taken, by {self.items} items; remove items, or train "
            "again with a higher --tokenize.codes or --tokenize.levels"
        )
