"""A planted world: a shop whose log shows what was offered, not what was liked.

The items come in ten pairs; the customer of pair p takes its first item nine times of ten, because the shop offers it,
and likes the second. The history of a customer is the pair before.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from llmrec.decode.config import DecodeConfig
from llmrec.decode.ranker import ItemRanker
from llmrec.preference.align import Progress, Validation, align
from llmrec.preference.config import PreferenceConfig
from llmrec.preference.examples import PreferenceExamples
from llmrec.preference.objectives import Material
from llmrec.preference.policy import Policy
from llmrec.preference.rewards import ExpertsReward

PAIRS = 10


def liked_after(item: int) -> int:
    """The item that a customer with this history likes; the log has the one before it most often."""
    return 2 * ((item // 2 + 1) % PAIRS) + 1


@pytest.fixture
def world(shop) -> list[np.ndarray]:
    """The log: 200 customers with two items each."""
    rng = np.random.default_rng(0)
    first = rng.integers(2 * PAIRS, size=200)
    return [np.array([item, liked_after(item) - (rng.random() < 0.9)]) for item in first]


_learnt: dict[str, torch.Tensor] = {}


@pytest.fixture
def supervised(shop):
    """The shop with a model that has learnt the log: cross-entropy on the next item's codes. Learnt once."""
    if not _learnt:
        policy = Policy(shop.model, shop.vocabulary, shop.trie, DecodeConfig(dtype="float32"))
        prompts = shop.renderer.encode_prompts([prompt_of(shop, item) for item in range(2 * PAIRS)])
        items = np.array([[liked_after(item) - 1, liked_after(item)] for item in range(2 * PAIRS)])
        optimizer = torch.optim.AdamW(shop.model.parameters(), 3e-3)
        for _ in range(80):
            (policy.item_scores(prompts, items) @ torch.tensor([-0.9, -0.1])).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        _learnt.update({name: value.clone() for name, value in shop.model.state_dict().items()})
    shop.model.load_state_dict(_learnt)
    return shop


def prompt_of(shop, item: int) -> str:
    return shop.renderer.prompt("sequential", 0, history=shop.renderer.history([item]))


@pytest.fixture
def aligned(supervised, world, tmp_path: Path) -> Callable[..., tuple[Progress, np.ndarray]]:
    """`aligned(config, ...)`: aligns the supervised model; the progress, and the top of the list after each item."""
    shop = supervised
    weights = {name: value.clone() for name, value in shop.model.state_dict().items()}

    def run(
        config: PreferenceConfig,
        folder: str = "run",
        reward=None,
        disliked: bool = False,
        validation: Validation | None = None,
        experts: ExpertsReward | None = None,
    ) -> tuple[Progress, np.ndarray]:
        shop.model.load_state_dict(weights)
        shop.model.requires_grad_(True)
        policy = Policy(shop.model, shop.vocabulary, shop.trie, DecodeConfig(dtype="float32"))
        histories = [sequence[:1] for sequence in world]
        liked = np.array([liked_after(int(sequence[0])) for sequence in world])
        preferred = liked if disliked else np.array([sequence[1] for sequence in world])
        bad = [np.array([item - 1]) if disliked else np.empty(0, np.int64) for item in liked]
        material = Material(
            policy,
            dict(shop.model.named_parameters()),
            {},
            [ItemRanker(shop.renderer, policy, 160).prompt_ids(history) for history in histories],
            PreferenceExamples(histories, preferred, bad, np.arange(len(world))),
            np.bincount(np.concatenate(world), minlength=2 * PAIRS),
            shop.catalog,
            config,
            experts,
        )
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        progress = align(material, validation, place, reward)
        tops = policy.search(shop.renderer.encode_prompts([prompt_of(shop, item) for item in range(2 * PAIRS)]), 1)
        return progress, tops.items[:, 0]

    return run


@pytest.fixture
def probability(supervised) -> Callable[[np.ndarray], np.ndarray]:
    """`probability(items)`: what the model gives to each of 20 items, int64 [20], after the history of its customer."""

    def ask(items: np.ndarray) -> np.ndarray:
        policy = Policy(supervised.model, supervised.vocabulary, supervised.trie, DecodeConfig(dtype="float32"))
        prompts = supervised.renderer.encode_prompts([prompt_of(supervised, item) for item in range(2 * PAIRS)])
        with torch.no_grad():
            return policy.item_scores(prompts, items[:, None])[:, 0].exp().numpy()

    return ask


@pytest.fixture
def liked() -> np.ndarray:
    """int64 [20], the liked item after each item."""
    return np.array([liked_after(item) for item in range(2 * PAIRS)])


@pytest.fixture
def guard(supervised, liked) -> Validation:
    """Validation events of the liked items: what the guards would see if customers could choose freely."""
    from llmrec.data import EvalExamples

    histories = [np.array([item]) for item in range(2 * PAIRS)]
    prompts = supervised.renderer.encode_prompts([prompt_of(supervised, item) for item in range(2 * PAIRS)])
    users = [f"u{item}" for item in range(2 * PAIRS)]
    return Validation(EvalExamples(np.arange(2 * PAIRS), histories, liked), prompts, 400, users)


@pytest.fixture
def likes(supervised) -> Callable[..., list[float]]:
    """The hidden taste as a reward: 1 for the liked item."""

    def reward(history, items, target):
        rows = supervised.catalog.index
        return [float(rows[item] == liked_after(rows[history[-1]])) for item in items]

    return reward
