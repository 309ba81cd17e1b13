"""Fixtures that many tests share: a tiny catalogue, and a `Shop` with a language model for it."""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

# This must be set before the first import of numpy or torch. With one thread each, the tests and the programs that they
# start sum numbers in the same order, and the workers of pytest-xdist don't compete for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import polars as pl
import pytest
from hypothesis import settings

from llmrec.data import Catalog

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmrec.index.trie import ItemTrie
    from llmrec.model.tokens import ItemVocabulary
    from llmrec.tasks.render import Renderer

# By default, hypothesis fails an example that takes longer than 200 ms. That depends on the machine.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

LEVEL_SIZES = [4, 5]
BRANDS = ["Alba", "Borea", "Cirrus", ""]
KINDS = ["shampoo", "soap", "face cream", "hand balm", "lip gloss"]
CHAT = (
    "{% for message in messages %}<|user|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(autouse=True)
def no_log_handler_stays() -> Iterator[None]:
    """Remove the log handler that a command leaves in this process; its stream is closed when the test ends."""
    yield
    logger = logging.getLogger("llmrec")
    logger.handlers.clear()
    logger.propagate = True


@dataclass
class Shop:
    """20 items with distinct semantic IDs, and a small language model with their item tokens."""

    catalog: Catalog
    codes: np.ndarray
    vocabulary: "ItemVocabulary"
    tokenizer: "PreTrainedTokenizerBase"
    model: "PreTrainedModel"
    renderer: "Renderer"
    trie: "ItemTrie"
    sequences: list[np.ndarray]


@pytest.fixture(scope="session")
def tiny_catalog() -> Catalog:
    """20 items; every fourth has no brand."""
    rows = [(brand, kind) for brand in BRANDS for kind in KINDS]
    frame = pl.DataFrame(
        {
            "item_id": [f"i{row}" for row in range(len(rows))],
            "title": [f"{brand} {kind} {row}".strip() for row, (brand, kind) in enumerate(rows)],
            "brand": [brand for brand, _ in rows],
            "description": [
                f"A gentle {kind} for every day of the week, number {row} of the {brand} line that "
                "cares for skin and hair"
                for row, (brand, kind) in enumerate(rows)
            ],
        }
    )
    return Catalog.from_frame(frame)


@pytest.fixture
def make_shop(tiny_catalog: Catalog) -> Callable[..., Shop]:
    """A function that builds a new `Shop`: `make_shop(tied=True, chat=False, architecture="qwen3")`."""
    from transformers import AutoModelForCausalLM

    from llmrec.index.trie import ItemTrie
    from llmrec.model.adapter import add_item_rows
    from llmrec.model.base import make_base
    from llmrec.model.config import BaseConfig
    from llmrec.model.tokens import ItemVocabulary
    from llmrec.tasks.config import load_templates
    from llmrec.tasks.render import Renderer

    def build(tied: bool = True, chat: bool = False, architecture: Literal["qwen3", "t5"] = "qwen3") -> Shop:
        base = BaseConfig(architecture=architecture, hidden_size=32, layers=2, heads=4, vocabulary=320, context=160)
        model, tokenizer = make_base(base, tiny_catalog.texts("{title}. {description}"))
        if not tied:
            model.config.tie_word_embeddings = False
            model = AutoModelForCausalLM.from_config(model.config)
        if chat:
            tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
            tokenizer.chat_template = CHAT
        vocabulary = ItemVocabulary.add_to(tokenizer, LEVEL_SIZES)
        add_item_rows(model, vocabulary.all_ids, len(tokenizer), seed=0)
        codes = np.stack(np.unravel_index(np.arange(len(tiny_catalog)), LEVEL_SIZES), axis=1)
        rng = np.random.default_rng(0)
        sequences = [rng.permutation(len(codes))[: 1 + user % 7].astype(np.int32) for user in range(14)]
        return Shop(
            tiny_catalog,
            codes,
            vocabulary,
            tokenizer,
            model,
            Renderer(tokenizer, vocabulary, codes, load_templates(), max_history=4),
            ItemTrie.build(codes, LEVEL_SIZES),
            sequences,
        )

    return build


@pytest.fixture
def shop(make_shop: Callable[..., Shop]) -> Shop:
    """A new `Shop` with tied token embeddings and no chat template."""
    return make_shop()


@pytest.fixture
def loud(shop: Shop) -> Shop:
    """The shop with large random weights, so that the model's scores of items differ clearly."""
    import torch

    torch.manual_seed(0)
    for parameter in shop.model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return shop
