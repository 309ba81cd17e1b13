"""An untrained recommender, and a shop of longer semantic IDs whose model is asked the slow way."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llmrec.data import Catalog
from llmrec.embed.encoder import EmbedConfig
from llmrec.model.config import BaseConfig
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.recommender import Recommender


@pytest.fixture(scope="session")
def recommender(tiny_catalog: Catalog) -> Recommender:
    """A recommender for 20 items with 2 levels of 4 codes and a dedup level."""
    tokenizer = ItemTokenizer(levels=2, codes=4, embed=EmbedConfig(encoder="tfidf-svd", dim=8)).fit(tiny_catalog)
    config = BaseConfig(hidden_size=32, layers=1, heads=4, vocabulary=320, context=160)
    return Recommender.from_base(None, tokenizer, config=config)


@pytest.fixture(scope="session")
def unsized() -> Callable[[Path], Path]:
    """A function that removes the file sizes from a bundle's header, as in 0.1, so that other checks find damage."""

    def change(folder: Path) -> Path:
        header = json.loads((folder / "llmrec.json").read_text())
        (folder / "llmrec.json").write_text(json.dumps(header | {"files": {}}))
        return folder

    return change


SIZES = [4, 4, 3]
# Branches of one to eight items, a first code with one item only, and two items that share their semantic ID.
CODES = """000 001 002 010 011 021 030 032 100 102 111 120 121 122 131 131 210 212 231 321"""
NEW = ["001", "010", "011", "021", "032", "100", "121", "321"]
"""A second code with new items alone, some beside one trained item, some beside several, a first code of its own."""


@pytest.fixture
def deep(shop):
    """20 items, in no order, of three codes, of which two tell content; a model with opinions."""
    from llmrec.index.trie import ItemTrie
    from llmrec.model.adapter import add_item_rows
    from llmrec.model.tokens import ItemVocabulary
    from llmrec.tasks.render import Renderer

    vocabulary = ItemVocabulary.add_to(shop.tokenizer, SIZES, prefix="x")
    add_item_rows(shop.model, vocabulary.all_ids, len(shop.tokenizer), seed=0)
    torch.manual_seed(0)
    for parameter in shop.model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    codes = np.random.default_rng(0).permutation(np.array([list(map(int, word)) for word in CODES.split()]))
    return replace(
        shop,
        codes=codes,
        vocabulary=vocabulary,
        model=shop.model.eval(),
        renderer=Renderer(shop.tokenizer, vocabulary, codes, shop.renderer.templates, max_history=4),
        trie=ItemTrie.build(codes, SIZES),
    )


@pytest.fixture
def new_items(deep) -> np.ndarray:
    """bool [20]."""
    return np.isin(["".join(map(str, row)) for row in deep.codes], NEW)


@pytest.fixture
def exhaustive() -> Callable[..., np.ndarray]:
    """`exhaustive(shop, prompts, scoring, new)`: every item's log-probability per code, float64 [B, N, L]."""

    @torch.inference_mode()
    def score(shop, prompts: Sequence[Sequence[int]], scoring: str, new: np.ndarray | None = None) -> np.ndarray:
        new = np.zeros(len(shop.codes), bool) if new is None else new
        tokens = shop.vocabulary.token_ids(shop.codes)
        scores = np.zeros((len(prompts), *shop.codes.shape))
        for row, prompt in enumerate(prompts):
            ids = torch.tensor([[*prompt, *own] for own in tokens.tolist()])
            logits = shop.model(ids).logits[:, len(prompt) - 1 : -1].double().numpy()
            for item, codes in enumerate(shop.codes):
                for level, token in enumerate(tokens[item]):
                    among = np.arange(logits.shape[2]) if scoring == "vocab" else shop.vocabulary.ids[level]
                    if scoring == "catalogue":
                        below = (shop.codes[:, :level] == codes[:level]).all(axis=1)
                        among = np.unique(tokens[below & ~new if (below & ~new).any() else below, level])
                    total = np.log(np.exp(logits[item, level, among]).sum())
                    scores[row, item, level] = min(0.0, logits[item, level, token] - total)
        return scores

    return score


@pytest.fixture
def hidden_after() -> Callable[..., torch.Tensor]:
    """`hidden_after(shop, prompt, codes)`: what the output head sees after a prompt and some codes, [H]."""

    @torch.inference_mode()
    def run(shop, prompt: Sequence[int], codes: Sequence[int] = ()) -> torch.Tensor:
        spelt = [int(shop.vocabulary.ids[level][code]) for level, code in enumerate(codes)]
        return shop.model.base_model(torch.tensor([[*prompt, *spelt]])).last_hidden_state[0, -1]

    return run
