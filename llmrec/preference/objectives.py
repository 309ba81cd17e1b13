"""What is learnt from a batch of prompts: S-DPO from pairs drawn once, GRPO from groups drawn by the current model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import reduce
from torch import nn

from llmrec.console import get_logger
from llmrec.data import Catalog
from llmrec.decode.filters import Filter
from llmrec.preference.config import PreferenceConfig
from llmrec.preference.examples import Pairs, PreferenceExamples, make_pairs
from llmrec.preference.losses import advantages, grpo, s_dpo
from llmrec.preference.policy import Policy, weights_of
from llmrec.preference.rewards import ExpertsReward, Reward, rewards_of

log = get_logger(__name__)

PAIRS = "pairs.parquet"

Judge = Callable[[int, np.ndarray], np.ndarray]
"""(number of an example, what is in its group, [G']) -> rewards, float64 [G']."""


@dataclass
class Material:
    """What every objective works with.

    Attributes:
        policy: the model.
        trained: its parameters that are trained.
        start: their values before the alignment.
        prompts: n token ids.
        examples: n of them.
        train_counts: int64 [N], training events of each item.
        catalog: the N items.
        config: of the alignment.
        experts: what reward experts asks.
    """

    policy: Policy
    trained: Mapping[str, nn.Parameter]
    start: Mapping[str, torch.Tensor]
    prompts: Sequence[Sequence[int]]
    examples: PreferenceExamples
    train_counts: np.ndarray
    catalog: Catalog
    config: PreferenceConfig
    experts: ExpertsReward | None = None

    def reference_scores(self, prompts: Sequence[Sequence[int]], items: np.ndarray) -> torch.Tensor:
        """The log-probabilities of `items` int64 [B, M] by the model before the alignment, float32 [B, M]."""
        with weights_of(self.trained, self.start), torch.no_grad():
            return self.policy.item_scores(prompts, items)

    def named(self, row: int) -> tuple[list[str], str]:
        """The history of example number `row` and the item that the user took, as ids."""
        ids, examples = self.catalog.ids, self.examples
        return [ids[item] for item in examples.histories[row]], ids[examples.preferred[row]]

    def judge(self, reward: Reward) -> Judge:
        """What a function of ids says of the items of a group."""

        def of_items(row: int, group: np.ndarray) -> np.ndarray:
            history, target = self.named(row)
            return rewards_of(reward, history, [self.catalog.ids[item] for item in group], target)

        return of_items


class Objective(ABC):
    """One method of alignment."""

    @abstractmethod
    def begin(self, step: int, batches: Sequence[np.ndarray]) -> None:
        """Get ready for step number `step`; `batches` are the examples, int64 [b], of this step and those after it."""

    @abstractmethod
    def loss(self, step: int, rows: np.ndarray) -> torch.Tensor:
        """The sum of the loss over the examples `rows`, int64 [b]: a scalar with gradients."""

    def remark(self) -> dict[str, float]:
        """Figures of the steps since the last call, of all processes, for the log."""
        return {}


class SDPO(Objective):
    """S-DPO on pairs that are drawn and scored once, before the first step, and kept in `pairs.parquet`."""

    def __init__(self, material: Material, folder: Path, steps: int, main: bool) -> None:
        self.material = material
        self.easy_steps = round(material.config.easy * steps)
        path = folder / PAIRS
        if not path.exists():
            log.info("Drawing the rejected items of %d examples", len(material.examples))
            with weights_of(material.trained, material.start):
                self.pairs = make_pairs(
                    material.policy, material.prompts, material.examples, material.train_counts, material.config
                )
            if main:
                self.pairs.save(path)
        else:
            self.pairs = Pairs.load(path)

    def begin(self, step: int, batches: Sequence[np.ndarray]) -> None:
        pass

    def loss(self, step: int, rows: np.ndarray) -> torch.Tensor:
        own, size = self.material, self.pairs.hard.shape[1]
        easy = step < self.easy_steps
        rejected = (self.pairs.easy if easy else self.pairs.hard)[rows]
        items = np.concatenate([own.examples.preferred[rows, None], rejected], axis=1)
        columns = np.append(0, np.arange(size) + (1 + size if easy else 1))
        policy = own.policy.item_scores([own.prompts[row] for row in rows], items)
        reference = torch.from_numpy(self.pairs.reference[np.ix_(rows, columns)]).to(policy.device)
        return s_dpo(policy, reference, torch.from_numpy(items >= 0).to(policy.device), own.config.beta).sum()


class GRPO(Objective):
    """GRPO on groups of different items that the current model draws; items of the history are left out."""

    def __init__(self, material: Material, judge: Judge) -> None:
        self.material = material
        self.judge = judge
        self.place: dict[int, int] = {}
        self.groups = 0
        self.constant = 0
        self.rewarded = 0.0

    def begin(self, step: int, batches: Sequence[np.ndarray]) -> None:
        if step % self.material.config.updates:
            return
        rows = np.unique(np.concatenate(batches))
        self.place = {int(row): at for at, row in enumerate(rows)}
        self.items, self.old = self.draw(step, rows)
        there = torch.from_numpy(self.there(self.items))
        self.advantage = advantages(torch.from_numpy(self._rewards(rows)), there).float()

    def draw(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        """The groups of `rows`, int64 [n]: items int64 [n, G], -1 for none, and their log-probabilities [n, G]."""
        own, config = self.material, self.material.config
        prompts = [own.prompts[row] for row in rows]
        filters = [Filter(excluded=own.examples.histories[row]) for row in rows]
        if config.draw == "beams":
            ranking = own.policy.search(prompts, config.group, filters)
        else:
            seeds = np.random.default_rng((config.seed, step)).integers(2**32, size=len(own.examples))
            ranking = own.policy.sample(prompts, config.group, seeds[rows], filters)
        return ranking.items, torch.from_numpy(ranking.scores)

    def there(self, items: np.ndarray) -> np.ndarray:
        """bool [n, G]: where the groups that `draw` found have something."""
        return items >= 0

    def scores(self, rows: np.ndarray, items: np.ndarray) -> torch.Tensor:
        """The log-probabilities of groups by the current model, with gradients: float32 [n, G], 0 for none."""
        return self.material.policy.item_scores([self.material.prompts[row] for row in rows], items)

    def _rewards(self, rows: np.ndarray) -> np.ndarray:
        there = self.there(self.items)
        found = np.zeros(there.shape)
        for at, row in enumerate(rows):
            group = self.items[at][there[at]]
            rewards = self.judge(int(row), group)
            found[at, : len(group)] = rewards
            self.groups += 1
            self.constant += bool(len(group) < 2 or np.ptp(rewards) == 0)
            self.rewarded += float(rewards.mean()) if len(group) else 0.0
        return found

    def loss(self, step: int, rows: np.ndarray) -> torch.Tensor:
        own, config = self.material, self.material.config
        at = np.array([self.place[int(row)] for row in rows])
        items = self.items[at]
        with weights_of(own.trained, own.start), torch.no_grad():
            reference = self.scores(rows, items)
        policy = self.scores(rows, items)
        there = torch.from_numpy(self.there(items)).to(policy.device)
        drawn_now = config.updates == 1
        old = policy.detach() if drawn_now else torch.where(there, self.old[at].to(policy.device), 0.0)
        losses = grpo(policy, old, reference, self.advantage[at].to(policy.device), config.kl_weight, config.clip)
        return (torch.where(there, losses, 0.0).sum(dim=1) / there.sum(dim=1).clamp(min=1)).sum()

    def remark(self) -> dict[str, float]:
        own = torch.tensor([self.groups, self.constant, self.rewarded], device=self.material.policy.device)
        groups, constant, rewarded = reduce(own, "sum").tolist()
        self.groups, self.constant, self.rewarded = 0, 0, 0.0
        if groups and constant == groups:
            log.warning(
                "All %d groups had equal rewards within the group, so they taught nothing; let the reward tell items "
                "apart, or raise --preference.group.",
                groups,
            )
        return {"reward": rewarded / max(groups, 1), "constant_groups": constant / max(groups, 1)}
