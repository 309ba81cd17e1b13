"""Rewards of lists: plain Python functions of (history, items, target).

def cheap(history, items, target):                        # ids as in the catalogue
    return [1.0 if item in CHEAP else 0.0 for item in items]

recommender.prefer(log, config=PreferenceConfig("grpo"), reward=cheap)
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from llmrec.errors import UserError

Reward = Callable[[Sequence[str], Sequence[str], str], Sequence[float] | float]
"""(history, oldest first; items, the most likely first; the item that the user took) -> a reward per item of a group;
with --preference.session above 1, the items are an ordered list, and it has one reward. All items are ids."""


def hit(history: Sequence[str], items: Sequence[str], target: str) -> list[float]:
    """1 for the item that the user took, 0 for the others."""
    return [float(item == target) for item in items]


def ranked_hit(history: Sequence[str], items: Sequence[str], target: str) -> list[float]:
    """`hit`, and in a group with a hit -(1 / log2(rank + 2)) / sum for each other item, with ranks from 0.

    The sum is over all ranks of the group (MiniOneRec, arXiv 2510.24431).
    """
    if target not in items:
        return [0.0] * len(items)
    weights = [1 / math.log2(rank + 2) for rank in range(len(items))]
    return [1.0 if item == target else -weight / sum(weights) for item, weight in zip(items, weights, strict=True)]


def list_hit(history: Sequence[str], items: Sequence[str], target: str) -> float:
    """1 for a list with the item that the user took, else 0."""
    return float(target in items)


def list_ranked_hit(history: Sequence[str], items: Sequence[str], target: str) -> float:
    """1 / log2(rank + 2) for a list with the item that the user took at a rank, from 0; else 0: its NDCG."""
    return 1 / math.log2(list(items).index(target) + 2) if target in items else 0.0


RewardName = Literal["hit", "ranked-hit"]
REWARDS: dict[RewardName, Reward] = {"hit": hit, "ranked-hit": ranked_hit}
LIST_REWARDS: dict[RewardName, Reward] = {"hit": list_hit, "ranked-hit": list_ranked_hit}


def rewards_of(reward: Reward, history: Sequence[str], items: Sequence[str], target: str) -> np.ndarray:
    """The rewards of one group, float64 [G].

    Raises:
        UserError: the function raises, or does not return one finite number per item. The checkpoints stay, so that
            the same command goes on from the last one with a mended function.
    """
    found, where = _called(reward, history, items, target, "group")
    if found.shape != (len(items),):
        raise UserError(f"{where}: shape {found.shape}, expected one number per item, ({len(items)},); mend it.")
    if not np.isfinite(found).all():
        wrong = int(np.flatnonzero(~np.isfinite(found))[0])
        raise UserError(f"{where}: {found[wrong]} for item {items[wrong]!r:.80}, expected a finite number; mend it.")
    return found


def list_reward_of(reward: Reward, history: Sequence[str], items: Sequence[str], target: str) -> float:
    """The reward of one ordered list; errors as in `rewards_of`."""
    found, where = _called(reward, history, items, target, "list")
    if found.shape != () or not np.isfinite(found):
        wrong = f"shape {found.shape}" if found.shape else str(found)
        raise UserError(f"{where}: {wrong}, expected one finite number for the list; mend it.")
    return float(found)


def _called(
    reward: Reward, history: Sequence[str], items: Sequence[str], target: str, what: str
) -> tuple[np.ndarray, str]:
    """What the function returns, as float64, and how to speak of it in a message."""
    name = getattr(reward, "__name__", type(reward).__name__)
    where = f"the reward {name} of a {what} of {len(items)} items, target {target!r:.80}"
    try:
        return np.asarray(reward(history, items, target), np.float64), where
    except Exception as error:  # the function of a user may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{where}: it raised {reason:.200}; mend it; checkpoints stay.") from error
