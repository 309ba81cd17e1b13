"""Answers that are not all of a kind: at most so many of each group, best first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.decode.filters import Filter

Ask = Callable[[Filter], tuple[np.ndarray, np.ndarray]]
"""From a filter to items int64 [n] that it lets through, best first, and their scores float32 [n]; none if none is."""


@dataclass(frozen=True)
class Quota:
    """At most `most` answers of each group.

    Attributes:
        groups: int64 [N], from 0: the group of each item; -1: of none, and never too many.
        most: at least 1.
    """

    groups: np.ndarray
    most: int


def diverse(ask: Ask, allowed: np.ndarray, k: int, quotas: Sequence[Quota]) -> tuple[np.ndarray, np.ndarray]:
    """The k items that a walk down the whole ranking picks when it passes over those whose group is full.

    The ranking is asked for in pieces, each without what was taken and what is full, so that a group which fills the
    top of it costs one more search, not one over all of its items.

    Args:
        ask: the ranking; exact as far as this is.
        allowed: bool [N].
        k: answers at most; fewer only if no other item has room.
        quotas: all of them hold.

    Returns:
        Items int64 [n] and scores float32 [n], best first.
    """
    allowed = allowed.copy()
    room = [np.full(quota.groups.max(initial=-1) + 1, quota.most) for quota in quotas]
    taken: list[tuple[float, int]] = []
    while len(taken) < k and allowed.any():
        items, scores = ask(Filter.of_mask(allowed))
        if not len(items):
            break
        for item, score in zip(items.tolist(), scores.tolist(), strict=True):
            if len(taken) == k or not allowed[item]:
                continue
            taken.append((score, item))
            allowed[item] = False
            for quota, left in zip(quotas, room, strict=True):
                group = quota.groups[item]
                if group >= 0:
                    left[group] -= 1
                    if not left[group]:
                        allowed[quota.groups == group] = False
    # A beam may find a better item in a later piece, since it is narrower than the catalogue.
    taken.sort(key=lambda pair: -pair[0])
    return np.array([item for _, item in taken], np.int64), np.array([score for score, _ in taken], np.float32)
