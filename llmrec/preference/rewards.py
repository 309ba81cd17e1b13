"""Rewards of lists: plain Python functions of (history, items, target).

def cheap(history, items, target):                        # ids as in the catalogue
    return [1.0 if item in CHEAP else 0.0 for item in items]

recommender.prefer(log, config=PreferenceConfig("grpo"), reward=cheap)
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from llmrec.collaborative.teacher import LEAST, Teacher
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


class ExpertsReward:
    """The logarithms of the probabilities that a teacher gives to items.

    With the group-normalised advantages of GRPO and a divergence of weight beta from the model before, the best model
    is pi ~ pi_before * p^(1 / (beta * sigma)), with sigma the deviation of log p in a group: both have a say.

    Args:
        teacher: made from the training sequences.
        first_codes: int [N], the first code of each item's semantic ID.
    """

    def __init__(self, teacher: Teacher, first_codes: np.ndarray) -> None:
        self.teacher = teacher
        self.first_codes = first_codes
        self.sizes = np.bincount(first_codes)

    def of(self, target: int, items: np.ndarray) -> np.ndarray:
        """The rewards of items int [G] at a training target, float64 [G], at least log(`LEAST`); all 0 at a target of
        which the teacher says nothing.

        Args:
            target: its number among the targets of all training sequences, as in `first_target`.
            items: rows of the catalogue.
        """
        row, codes = self.teacher.rows[target], self.first_codes[items]
        best, shares = row["items"], row["shares"].astype(float)
        if not shares.any():
            return np.zeros(len(items))
        others = self.sizes - np.bincount(self.first_codes[best], minlength=len(self.sizes))
        even = (row["rest"][: len(others)] / np.maximum(others, 1))[codes]
        place = np.minimum(np.searchsorted(best, items), len(best) - 1)  # the best are in rising order
        return np.log(np.maximum(np.where(best[place] == items, shares[place], even), LEAST))

    def judge(self, targets: np.ndarray) -> Callable[[int, np.ndarray], np.ndarray]:
        """A function of (number of an example, items): `of` at the example's target, int64 [n]."""
        return lambda row, items: self.of(int(targets[row]), items)


REWARDS: dict[str, Reward] = {"hit": hit, "ranked-hit": ranked_hit}
LIST_REWARDS: dict[str, Reward] = {"hit": list_hit, "ranked-hit": list_ranked_hit}


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
