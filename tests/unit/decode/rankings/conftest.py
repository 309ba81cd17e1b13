"""Ranking methods on the shop of longer semantic IDs, and by hand what they go by."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from circle import experts_of

from llmrec.collaborative.fused import FusedExperts
from llmrec.collaborative.fusion import FusionWeights
from llmrec.decode.config import DecodeConfig
from llmrec.decode.ranker import make_ranking
from llmrec.decode.rankings.base import ItemFacts
from llmrec.decode.rankings.fusion import FEATURES
from llmrec.decode.search import Prompt
from llmrec.decode.tree import TreeSearch
from llmrec.index.dense import DenseIndex
from llmrec.model.adapter import TEMPERATURE, DenseHead

HISTORIES = [[0, 5, 7], [11], [2, 4, 6, 8], [19, 1]]


@pytest.fixture
def facts(deep, new_items) -> ItemFacts:
    """8 of 20 items are new; two codes tell content."""
    torch.manual_seed(1)
    head = DenseHead(deep.model.config.hidden_size, 12, 6)
    texts = np.random.default_rng(2).normal(size=(20, 12)).astype(np.float32)
    weights = FusionWeights([1.0, 0.8, 0.5, 2.0], [0.7, 0.1, 1.0, 3.0], 0.5, {}, list(FEATURES))
    return ItemFacts(new_items, content_levels=2, dense=DenseIndex.of(head, texts), fusion_weights=weights)


@pytest.fixture
def experts(facts) -> FusedExperts:
    """They were fitted on histories of the items that are not new."""
    return experts_of(facts)


@pytest.fixture
def prompts(deep) -> list[Prompt]:
    """Four histories, in tokens."""
    shown = [deep.renderer.prompt("sequential", 0, history=deep.renderer.history(history)) for history in HISTORIES]
    return [*map(Prompt, deep.renderer.encode_prompts(shown), HISTORIES)]


@pytest.fixture
def method_of(deep, facts) -> Callable:
    """`method_of(name, facts changes and settings)`: as many beams as items unless told otherwise."""

    def make(name, content_levels=2, **settings):
        config = DecodeConfig(**{"beams": 20, "dtype": "float32", "batch_size": 3, **settings})
        known = replace(facts, content_levels=content_levels)
        search = TreeSearch(deep.model, deep.vocabulary, deep.trie, config, is_cold=known.is_cold)
        return make_ranking(search, known, search.config, name)

    return make


@pytest.fixture
def dense_scores(deep, facts, prompts, hidden_after) -> np.ndarray:
    """Of each item by the dense head, among those that are not new, from plain forward passes; [4, 20]."""
    hidden = torch.stack([hidden_after(deep, prompt) for prompt in prompts])
    head = facts.dense.head
    queries = torch.nn.functional.normalize(head.query(hidden), dim=1)
    cosines = (queries @ facts.dense.vectors.T).double().numpy()
    total = np.log(np.exp(cosines[:, ~facts.is_cold] / TEMPERATURE).sum(axis=1, keepdims=True))
    return cosines / TEMPERATURE - total


@pytest.fixture
def code_scores(deep, facts, prompts, exhaustive) -> np.ndarray:
    """Of each item's codes, [4, 20, 3]."""
    return exhaustive(deep, prompts, "catalogue", facts.is_cold)


def best_first(scores: np.ndarray) -> list[int]:
    return np.argsort(-scores, kind="stable").tolist()


@pytest.fixture(name="best_first")
def _best_first() -> Callable[[np.ndarray], list[int]]:
    """Places of a list's scores, the highest first."""
    return best_first
