"""What is read from the configurations of other architectures."""

import itertools

import numpy as np
import pytest
import torch
from loading import script
from tolerances import SCORES

from llmrec.decode.config import DecodeConfig
from llmrec.decode.generate import GenerateSearch
from llmrec.decode.tree import TreeSearch
from llmrec.index.trie import ItemTrie
from llmrec.model.architecture import context_length, logit_cap, logit_scale, unknown_window
from llmrec.model.tokens import ItemVocabulary

architectures = script("architectures")
TRAINED = 24
THETA = {"rope_theta": 1e4}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "original_max_position_embeddings": TRAINED}
ROPES = {
    "dynamic": ("llama", {"max_position_embeddings": TRAINED}, THETA | {"factor": 4.0}),
    "longrope": ("phi3", {"original_max_position_embeddings": TRAINED}, THETA | FACTORS),
    "yarn": ("llama", {}, THETA | {"factor": 4.0, "original_max_position_embeddings": TRAINED}),
}


def make(kind: str):
    name, fields, rope = ROPES[kind]
    return architectures.make_model(name, vocab_size=40, rope_parameters={"rope_type": kind, **rope}, **fields)


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("llama", {}, 160),
        ("gpt2", {}, 160),
        ("mpt", {}, 160),
        ("mamba", {}, 2048),
        ("gemma3_text", {}, 160),
        ("phi3", {}, 160),
    ],
)
def test_context_length(name: str, fields: dict, expected: int) -> None:
    assert context_length(architectures.make_model(name, vocab_size=40, **fields)) == expected


@pytest.mark.parametrize(("kind", "expected"), [("dynamic", TRAINED), ("longrope", TRAINED), ("yarn", 160)])
def test_frequencies_that_change_end_the_context(kind: str, expected: int) -> None:
    assert context_length(make(kind)) == expected


@pytest.mark.parametrize("search", [TreeSearch, GenerateSearch])
@pytest.mark.parametrize("kind", ROPES)
def test_within_the_context_a_cache_changes_nothing(kind: str, search: type) -> None:
    """After a sequence that was longer, too: dynamic frequencies stay in the model."""
    model, sizes = make(kind), [4, 5]
    codes = np.array(list(itertools.product(range(4), range(5))))
    vocabulary = ItemVocabulary([["x"] * size for size in sizes], [np.arange(30, 34), np.arange(35, 40)])
    prompt = np.random.default_rng(0).integers(0, 30, TRAINED - len(sizes)).tolist()
    ids = torch.tensor([[*prompt, *tokens] for tokens in vocabulary.token_ids(codes).tolist()])
    with torch.inference_mode():
        logits = model(ids, use_cache=False).logits[:, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logits.gather(2, ids[:, len(prompt) :, None]).sum((1, 2)).numpy()
        model(torch.zeros((1, 2 * TRAINED), dtype=torch.int64), use_cache=False)
    ranking = search(
        model, vocabulary, ItemTrie.build(codes, sizes), DecodeConfig(dtype="float32", scoring="vocab")
    ).search([prompt, prompt[:9]], 20)
    np.testing.assert_allclose(ranking.scores[0], expected[ranking.items[0]], rtol=0, atol=SCORES)


@pytest.mark.parametrize(
    ("name", "scale", "cap", "window"),
    [
        ("llama", 1.0, None, None),
        ("granite", 1 / 8, None, None),
        ("cohere", 0.0625, None, None),
        ("falcon_h1", 0.5, None, None),
        ("gemma2", 1.0, 2.0, None),
        ("recurrent_gemma", 1.0, 30.0, "attention_window_size"),
        ("mistral", 1.0, None, None),
        ("gpt_neo", 1.0, None, "window_size"),
    ],
)
def test_scale_cap_and_window(name: str, scale: float, cap: float | None, window: str | None) -> None:
    model = architectures.make_model(name, vocab_size=40)
    assert (logit_scale(model), logit_cap(model), unknown_window(model)) == (scale, cap, window)
