"""Tiny models of many architectures: the logits and the beams are those of the model's own forward pass."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import script
from tolerances import SCORES, SUMS

from llmrec.decode.choose import make_search
from llmrec.decode.config import DecodeConfig
from llmrec.decode.context import ItemHead
from llmrec.decode.generate import GenerateSearch
from llmrec.decode.tree import TreeSearch
from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie
from llmrec.model.adapter import with_adapter, with_rows
from llmrec.model.architecture import decoder_of
from llmrec.model.config import AdapterConfig
from llmrec.model.tokens import ItemVocabulary
from llmrec.recommender.discover import _next_codes

architectures = script("architectures")
TOKENS, SIZES = 60, [5, 4, 6]
STARTS = TOKENS - sum(SIZES) + np.cumsum([0, *SIZES])
VOCABULARY = ItemVocabulary(
    [[f"<{level}_{code}>" for code in range(size)] for level, size in enumerate(SIZES)],
    [np.arange(a, b) for a, b in itertools.pairwise(STARTS)],
)
CODES = np.stack([np.random.default_rng(1).integers(0, size, 30) for size in SIZES], axis=1)
TRIE = ItemTrie.build(CODES, SIZES)
# Some are longer than the windows of the models, and some that begin alike.
PROMPTS = [np.random.default_rng(n).integers(0, TOKENS, n).tolist() for n in (3, 14, 1, 9)]
ALIKE = [[*range(20), *prompt] for prompt in PROMPTS]
REFUSED = ["recurrent_gemma", "rwkv"]
NO_TREE = ["bloom", "gpt_neo", "mpt", "mamba", "mamba2", *REFUSED]
NO_TREE += ["qwen3_5_text", "qwen3_next", "lfm2", "jamba", "granitemoehybrid", "falcon_h1", "nemotron_h"]


DOCS = (Path(__file__).parents[2] / "docs" / "decoding.md").read_text()


@pytest.fixture(scope="module", params=architectures.SHAPES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return architectures.make_model(name, vocab_size=TOKENS)


@torch.inference_mode()
def exhaustive(model, prompt):
    """float32 [N]: the log-probability of each item after `prompt`, by plain forward passes."""
    answers = torch.from_numpy(VOCABULARY.token_ids(CODES))
    ids = torch.cat([torch.tensor(prompt).expand(len(answers), -1), answers], dim=1)
    logits = model(ids, use_cache=False).logits[:, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(2, answers[..., None]).sum((1, 2)).numpy()


def check(search, model, prompts):
    ranking = search.search(prompts, len(CODES))
    for items, scores, prompt in zip(ranking.items, ranking.scores, prompts, strict=True):
        expected = exhaustive(model, prompt)
        assert sorted(items) == list(range(len(CODES)))
        np.testing.assert_allclose(scores, expected[items], rtol=0, atol=SCORES)


@torch.inference_mode()
def test_logits_are_those_of_the_model(model):
    """Biases, factors and caps included."""
    ids = torch.tensor([PROMPTS[1]])
    hidden = decoder_of(model)(ids, use_cache=False)[0][0]
    head = ItemHead(model, VOCABULARY, "vocab", torch.float32)
    expected = model(ids, use_cache=False).logits[0].log_softmax(-1)
    torch.testing.assert_close(head.vocabulary(hidden), expected, rtol=0, atol=SUMS)
    for level, tokens in enumerate(VOCABULARY.ids):
        torch.testing.assert_close(head.level(hidden, level), expected[:, tokens], rtol=0, atol=SUMS)


def test_the_trial_chooses_a_search_that_is_exact(name, model):
    """Also for prompts that are longer than those of the trial."""
    config = DecodeConfig(dtype="float32", scoring="vocab")
    if name in REFUSED:
        with pytest.raises(UserError, match=rf"^base\.model: {type(model).__name__} can't be decoded"):
            make_search(model, VOCABULARY, TRIE, config)
        return
    search = make_search(model, VOCABULARY, TRIE, config)
    assert isinstance(search, GenerateSearch if name in NO_TREE else TreeSearch)
    check(search, model, PROMPTS + ALIKE)


def test_generate_is_exact_too(name, model):
    if name in NO_TREE:
        pytest.skip("it is the search of the test above")
    check(GenerateSearch(model, VOCABULARY, TRIE, DecodeConfig(dtype="float32")), model, PROMPTS + ALIKE)


@torch.inference_mode()
def test_hidden_states_of_prompts_do_not_depend_on_the_batch(name, model):
    """They are what the dense head reads."""
    if name in REFUSED:
        pytest.skip("can't be decoded")
    search = make_search(model, VOCABULARY, TRIE, DecodeConfig(dtype="float32", scoring="vocab"))
    alone = torch.cat([decoder_of(model)(torch.tensor([prompt]), use_cache=False)[0][:, -1] for prompt in PROMPTS])
    torch.testing.assert_close(search.prefill(PROMPTS).hidden, alone, rtol=0, atol=SCORES)


@torch.inference_mode()
def test_next_codes_after_one_prompt_are_those_of_the_model(name, model):
    """`discover` repeats the cache of a prompt for many prefixes."""
    if name in REFUSED:
        pytest.skip("can't be decoded")
    search = make_search(model, VOCABULARY, TRIE, DecodeConfig(dtype="float32", scoring="vocab"))
    head = ItemHead(model, VOCABULARY, "vocab", torch.float32)
    prefixes = torch.tensor([[0, 1], [2, 3], [4, 0]])
    tokens = [[int(VOCABULARY.ids[level][code]) for level, code in enumerate(prefix)] for prefix in prefixes]
    logits = model(torch.tensor([PROMPTS[1] + spelt for spelt in tokens]), use_cache=False).logits[:, -1]
    expected = logits.log_softmax(-1)[:, VOCABULARY.ids[2]]
    torch.testing.assert_close(_next_codes(search, head, PROMPTS[1], prefixes), expected, rtol=0, atol=SCORES)


@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_every_architecture_takes_an_adapter(name, dropout):
    """peft refuses some layers of Mamba and dropout before experts, and routers return tuples."""
    model = architectures.make_model(name, vocab_size=TOKENS)
    adapted = with_adapter(model, VOCABULARY.all_ids, AdapterConfig(rank=2, dropout=dropout))
    assert not adapted.peft_config["default"].target_parameters
    trainable = [parameter for label, parameter in adapted.named_parameters() if "lora_B" in label]
    assert len(trainable) >= 2
    adapted.train()(torch.tensor([PROMPTS[1]]), labels=torch.tensor([PROMPTS[1]]), use_cache=False).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in trainable)


@torch.no_grad()
@pytest.mark.parametrize("add", [with_adapter, lambda model, ids, config: with_rows(model, ids)], ids=["lora", "rows"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_computes_what_it_computes_once_merged(name, tied, add):
    """Before its training it changes nothing: not the bias of the head, not the scale of the embedding."""
    model = architectures.make_model(name, vocab_size=TOKENS, tie_word_embeddings=tied)
    ids = torch.tensor([PROMPTS[1]])
    before = model(ids, use_cache=False).logits
    adapted = add(model, VOCABULARY.all_ids, AdapterConfig(rank=2)).eval()
    torch.testing.assert_close(adapted(ids, use_cache=False).logits, before, rtol=0, atol=SUMS)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.15)
    trained = adapted(ids, use_cache=False).logits
    assert (trained - before).abs().max() > 0.1
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(ids, use_cache=False).logits, before, rtol=0, atol=SUMS)
    merged = adapted.merge_and_unload()(ids, use_cache=False).logits
    torch.testing.assert_close(merged, trained, rtol=1e-4, atol=SCORES)


def test_the_docs_say_how_each_architecture_is_decoded(name):
    decoded = "refused" if name in REFUSED else "generate" if name in NO_TREE else "tree"
    [row] = [line for line in DOCS.splitlines() if line.startswith(f"| {name} |")]
    assert row.endswith(f"| {decoded} |")


def test_a_row_of_the_table_of_the_docs():
    assert architectures.table([architectures.probe("gpt2")]).splitlines()[-1] in DOCS.splitlines()


@pytest.mark.slow
def test_the_table_of_the_docs():
    rows = [architectures.probe(name) for name in architectures.SHAPES]
    assert architectures.table(rows).split("\n\n")[0] in DOCS
