"""What is learnt from a batch of prompts: S-DPO from pairs drawn once, GRPO from groups drawn by the current model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch import nn

from llmrec.console import get_logger
from llmrec.data import Catalog
from llmrec.decode.filters import Filter
from llmrec.preference.config import PreferenceConfig
from llmrec.preference.examples import Pairs, PreferenceExamples, make_pairs
from llmrec.preference.losses import advantages, grpo, s_dpo
from llmrec.preference.policy import Policy, weights_of
from llmrec.preference.rewards import REWARDS, Reward, rewards_of

log = get_logger(__name__)

PAIRS = "pairs.parquet"


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
    """

    policy: Policy
    trained: Mapping[str, nn.Parameter]
    start: Mapping[str, torch.Tensor]
    prompts: Sequence[Sequence[int]]
    examples: PreferenceExamples
    train_counts: np.ndarray
    catalog: Catalog
    config: PreferenceConfig

    def reference_scores(self, prompts: Sequence[Sequence[int]], items: np.ndarray) -> torch.Tensor:
        """The log-probabilities of `items` int64 [B, M] by the model before the alignment, float32 [B, M]."""
        with weights_of(self.trained, self.start), torch.no_grad():
            return self.policy.item_scores(prompts, items)


class Objective(ABC):
    """One method of alignment."""

    @abstractmethod
    def begin(self, step: int, batches: Sequence[np.ndarray]) -> None:
        """Get ready for step number `step`; `batches` are the examples, int64 [b], of this step and those after it."""

    @abstractmethod
    def loss(self, step: int, rows: np.ndarray) -> torch.Tensor:
        """The sum of the loss over the examples `rows`, int64 [b]: a scalar with gradients."""

    def remark(self) -> dict[str, float]:
        """Figures of the steps since the last call, for the log."""
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

    def __init__(self, material: Material, reward: Reward, seed: int) -> None:
        self.material = material
        self.reward = reward
        self.seed = seed
        self.place: dict[int, int] = {}
        self.groups = 0
        self.constant = 0
        self.rewards: list[float] = []

    def begin(self, step: int, batches: Sequence[np.ndarray]) -> None:
        own, config = self.material, self.material.config
        if step % config.updates:
            return
        rows = np.unique(np.concatenate(batches))
        prompts = [own.prompts[row] for row in rows]
        filters = [Filter(excluded=own.examples.histories[row]) for row in rows]
        if config.draw == "beams":
            ranking = own.policy.search(prompts, config.group, filters)
        else:
            ranking = own.policy.sample(prompts, config.group, self.seed + step, filters)
        self.place = {int(row): at for at, row in enumerate(rows)}
        self.items, self.old = ranking.items, torch.from_numpy(ranking.scores)
        self.advantage = advantages(torch.from_numpy(self._rewards(rows)), torch.from_numpy(self.items >= 0)).float()

    def _rewards(self, rows: np.ndarray) -> np.ndarray:
        ids, examples = self.material.catalog.ids, self.material.examples
        found = np.zeros(self.items.shape)
        for at, row in enumerate(rows):
            group = self.items[at][self.items[at] >= 0]
            history = [ids[item] for item in examples.histories[row]]
            rewards = rewards_of(self.reward, history, [ids[item] for item in group], ids[examples.preferred[row]])
            found[at, : len(group)] = rewards
            self.groups += 1
            self.constant += bool(len(group) < 2 or np.ptp(rewards) == 0)
            self.rewards.append(float(rewards.mean()) if len(group) else 0.0)
        return found

    def loss(self, step: int, rows: np.ndarray) -> torch.Tensor:
        own, config = self.material, self.material.config
        at = np.array([self.place[int(row)] for row in rows])
        items, prompts = self.items[at], [own.prompts[row] for row in rows]
        reference = own.reference_scores(prompts, items)
        policy = own.policy.item_scores(prompts, items)
        there = torch.from_numpy(items >= 0).to(policy.device)
        drawn_now = config.updates == 1
        old = policy.detach() if drawn_now else torch.where(there, self.old[at].to(policy.device), 0.0)
        losses = grpo(policy, old, reference, self.advantage[at].to(policy.device), config.kl, config.clip)
        return (torch.where(there, losses, 0.0).sum(dim=1) / there.sum(dim=1).clamp(min=1)).sum()

    def remark(self) -> dict[str, float]:
        if self.groups and self.constant == self.groups:
            log.warning(
                "All %d groups had equal rewards within the group, so they taught nothing; let the reward tell items "
                "apart, or raise --preference.group.",
                self.groups,
            )
        found = {
            "reward": float(np.mean(self.rewards)) if self.rewards else 0.0,
            "constant_groups": self.constant / max(self.groups, 1),
        }
        self.groups, self.constant, self.rewards = 0, 0, []
        return found


def make_objective(material: Material, reward: Reward | None, folder: Path, steps: int) -> Objective:
    """The objective of the configured method.

    Args:
        material: what it works with.
        reward: replaces the configured one.
        folder: for the pairs.
        steps: optimizer steps of the whole alignment.
    """
    state = PartialState()
    if material.config.method == "s-dpo":
        return SDPO(material, folder, steps, state.is_main_process)
    chosen = REWARDS[material.config.reward] if reward is None else reward
    return GRPO(material, chosen, material.config.seed + 1_000_003 * state.process_index)
