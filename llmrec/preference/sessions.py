"""GRPO on lists that are generated in one go and rewarded as a whole (OneRec, arXiv 2502.18965)."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from llmrec.decode.filters import Filter
from llmrec.decode.search import Prompt
from llmrec.preference.objectives import GRPO, SDPO, Judge, Material, Objective
from llmrec.preference.rewards import LIST_REWARDS, REWARDS, Reward, list_reward_of


class SessionGRPO(GRPO):
    """GRPO whose groups are G ordered lists of S different items per prompt.

    The log-probability of a list is the sum over its items, each given those before it, as in `SessionRanking`. The
    first items of a group are drawn as for single items, so its lists are all different; a list goes on with the most
    likely item (draw beams) or a random one (draw samples).
    """

    def draw(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        """Lists int64 [n, G, S], -1 behind the end of a list, and their log-probabilities [n, G]."""
        own, config = self.material, self.material.config
        first, total = super().draw(step, rows)
        lists = first[:, :, None]
        for at in range(1, config.session):
            place = np.nonzero(lists[:, :, -1] >= 0)
            begun, examples = lists[place], rows[place[0]]
            prompts = self._after(examples, begun)
            shown = [own.examples.histories[example] for example in examples]
            filters = [Filter(excluded=np.append(h, items)) for h, items in zip(shown, begun, strict=True)]
            if config.draw == "beams":
                ranking = own.policy.search(prompts, 1, filters)
            else:
                size = (len(own.examples), config.group)
                seeds = np.random.default_rng((config.seed, step, at)).integers(2**32, size=size)
                ranking = own.policy.sample(prompts, 1, seeds[examples, place[1]], filters)
            more, gain = np.full(first.shape, -1), np.zeros(first.shape, np.float32)
            more[place] = ranking.items[:, 0]
            gain[place] = np.where(ranking.items[:, 0] >= 0, ranking.scores[:, 0], 0)
            lists, total = np.concatenate([lists, more[:, :, None]], axis=2), total + torch.from_numpy(gain)
        return lists, total

    def there(self, items: np.ndarray) -> np.ndarray:
        return super().there(items[:, :, 0])

    def scores(self, rows: np.ndarray, items: np.ndarray) -> torch.Tensor:
        total = super().scores(rows, items[:, :, 0])
        for at in range(1, items.shape[2]):
            place = np.nonzero(items[:, :, at] >= 0)
            if not len(place[0]):
                break
            asked = self._after(rows[place[0]], items[place][:, :at])
            own = self.material.policy.item_scores(asked, items[place][:, at, None])[:, 0]
            total = total.index_put(tuple(torch.from_numpy(each) for each in place), own, accumulate=True)
        return total

    def _after(self, rows: Iterable[int], lists: Sequence[np.ndarray] | np.ndarray) -> list[Prompt]:
        """The prompts of the examples `rows` with the items of `lists` behind their histories."""
        prompts = []
        for row, items in zip(rows, lists, strict=True):
            prompt = self.material.prompts[row]
            assert isinstance(prompt, Prompt), "what an ItemRanker wrote"
            assert prompt.after is not None, "what an ItemRanker wrote"
            prompts.append(prompt.after(items.tolist()))
        return prompts


def judge_of_lists(material: Material, reward: Reward) -> Judge:
    """What a function of ids says of the lists of a group."""
    ids = material.catalog.ids

    def of_lists(row: int, group: np.ndarray) -> np.ndarray:
        history, target = material.named(row)
        lists = [[ids[item] for item in each if item >= 0] for each in group]
        return np.array([list_reward_of(reward, history, each, target) for each in lists])

    return of_lists


def make_objective(material: Material, reward: Reward | None, folder: Path, steps: int) -> Objective:
    """The objective of the configured method.

    Args:
        material: what it works with.
        reward: replaces the configured one.
        folder: for the pairs.
        steps: optimizer steps of the whole alignment.
    """
    config = material.config
    if config.method == "s-dpo":
        return SDPO(material, folder, steps, PartialState().is_main_process)
    if config.session > 1:
        own = LIST_REWARDS[config.reward] if reward is None else reward
        return SessionGRPO(material, judge_of_lists(material, own))
    if reward is None and config.reward == "experts":
        assert material.experts is not None, "reward experts has experts"
        return GRPO(material, material.experts.judge(material.examples.targets))
    return GRPO(material, material.judge(REWARDS[config.reward] if reward is None else reward))
