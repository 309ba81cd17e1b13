"""Every kind of model under the beam search: equal to scoring the whole catalogue, whatever its config says."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import SCORES
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    Qwen3Config,
)

from llmrec.decode.config import DecodeConfig
from llmrec.decode.context import shared_start
from llmrec.decode.exact import ExactSearch
from llmrec.decode.filters import Filter
from llmrec.decode.generate import GenerateSearch, TrieConstraint, plain_generation
from llmrec.decode.search import BeamSearch, Ranking
from llmrec.decode.tree import TreeSearch
from llmrec.index.trie import ItemTrie
from llmrec.model.config import AdapterConfig
from llmrec.model.tokens import ItemVocabulary
from llmrec.train.finetune import with_adapter

WORDS, TOKENS = 100, 140  # plain tokens come first, item tokens after them
SMALL = {"vocab_size": TOKENS, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "qwen3": Qwen3Config(**SMALL, num_hidden_layers=2, tie_word_embeddings=True),
    "llama": LlamaConfig(**SMALL, num_hidden_layers=2, tie_word_embeddings=False),
    "gpt2": GPT2Config(
        vocab_size=TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    ),
    "gemma3": Gemma3TextConfig(**SMALL, num_hidden_layers=3, sliding_window=8),
}
# Half plain, half item tokens, as in histories: a penalty on repetition would hit what may come next.
PROMPTS = [[int(t) for t in np.random.default_rng(n).integers(60, TOKENS, n)] for n in (3, 9, 1, 14, 7)]
START = [int(t) for t in np.random.default_rng(0).integers(60, TOKENS, 20)]
ALIKE = [START + prompt for prompt in PROMPTS] + [START]
SCORINGS = ["vocab", "level", "catalogue"]


class Case:
    """A random catalogue, with its semantic IDs as tokens, in front of a model."""

    def __init__(self, model, codes, level_sizes, kind: type[BeamSearch] = TreeSearch):
        self.kind = kind
        starts = WORDS + np.concatenate([[0], np.cumsum(level_sizes)])
        self.model, self.codes = model, codes
        self.vocabulary = ItemVocabulary(
            [[f"<{level}_{code}>" for code in range(size)] for level, size in enumerate(level_sizes)],
            [np.arange(a, b) for a, b in itertools.pairwise(starts)],
        )
        self.trie = ItemTrie.build(codes, level_sizes)

    def searcher(self, dtype="float32", scoring="vocab", **settings) -> BeamSearch:
        config = DecodeConfig(dtype=dtype, device="cpu", scoring=scoring, **settings)
        return self.kind(self.model, self.vocabulary, self.trie, config)

    def search(self, prompts, k, excluded=None, **settings) -> Ranking:
        filters = None if excluded is None else [Filter(excluded=rows) for rows in excluded]
        return self.searcher(**settings).search(prompts, k, filters)

    @torch.inference_mode()
    def exhaustive(self, prompt, scoring="vocab") -> np.ndarray:
        """float32 [N]: the log-probability of every item's semantic ID after `prompt`, one forward pass each."""
        answers = torch.from_numpy(self.vocabulary.token_ids(self.codes))
        ids = torch.cat([torch.tensor(prompt).expand(len(answers), -1), answers], dim=1)
        logits = self.model(ids).logits[:, len(prompt) - 1 : -1].float()
        for level, tokens in enumerate(map(torch.from_numpy, self.vocabulary.ids)):
            among = torch.full(logits[:, level].shape, scoring == "vocab")
            if scoring == "level":
                among[:, tokens] = True
            if scoring == "catalogue":
                for row, start in enumerate(self.codes[:, :level]):
                    among[row, answers[(self.codes[:, :level] == start).all(axis=1), level]] = True
            logits[:, level] = logits[:, level].masked_fill(~among, -torch.inf)
        return logits.log_softmax(-1).gather(2, answers[..., None]).sum((1, 2)).numpy()


@pytest.fixture(scope="module", params=[*CONFIGS, "lora"])
def model(request):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS.get(request.param, CONFIGS["qwen3"])))
    model.generation_config.update(do_sample=True, temperature=0.3, top_k=3, num_beams=2)
    model.generation_config.update(repetition_penalty=1.5, suppress_tokens=[WORDS, WORDS + 1])
    if request.param == "lora":
        model = with_adapter(model, np.arange(WORDS, TOKENS), AdapterConfig(rank=4))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


@pytest.fixture(scope="module", params=[TreeSearch, GenerateSearch])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def case(model, kind):
    level_sizes = [5, 4, 6]
    codes = np.stack([np.random.default_rng(1).integers(0, size, 40) for size in level_sizes], axis=1)
    assert len(np.unique(codes, axis=0)) < len(codes), "some items are meant to share a semantic ID"
    return Case(model, codes, level_sizes, kind)


@st.composite
def situations(draw):
    """Codes, level sizes, prompts and exclusions of a small shop."""
    level_sizes = draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    code = st.tuples(*(st.integers(0, size - 1) for size in level_sizes))
    codes = np.array(draw(st.lists(code, min_size=1, max_size=20)))
    prompts = draw(st.lists(st.sampled_from(PROMPTS + ALIKE), min_size=1, max_size=3))
    items = st.sets(st.integers(0, len(codes) - 1))
    excluded = draw(st.lists(items.map(sorted), min_size=len(prompts), max_size=len(prompts)))
    return codes, level_sizes, prompts, [np.array(rows, dtype=np.int64) for rows in excluded]


def check_exact(ranking, case, prompts, excluded):
    """The ranking holds every item that is not excluded, in the order of, and with, its exhaustive score."""
    for items, scores, prompt, gone in zip(ranking.items, ranking.scores, prompts, excluded, strict=True):
        expected = case.exhaustive(prompt)
        found = items[items >= 0]
        assert sorted(found) == sorted(set(range(len(expected))) - set(gone.tolist()))
        np.testing.assert_allclose(scores[: len(found)], expected[found], rtol=0, atol=SCORES)
        assert (np.diff(expected[found]) < 1e-4).all()
        assert (items[len(found) :] == -1).all()
        assert np.isneginf(scores[len(found) :]).all()
    assert ranking.invalid == 0


def test_equals_exhaustive_scoring(case):
    rng = np.random.default_rng(2)
    excluded = [rng.choice(40, size=n, replace=False) for n in (0, 5, 30, 38, 40)]
    check_exact(case.search(PROMPTS, k=40), case, PROMPTS, [np.empty(0, np.int64)] * len(PROMPTS))
    check_exact(case.search(PROMPTS, k=40, excluded=excluded, batch_size=2), case, PROMPTS, excluded)


@settings(max_examples=40, deadline=None)
@given(situation=situations())
def test_equals_exhaustive_scoring_of_any_shop(model, kind, situation):
    codes, level_sizes, prompts, excluded = situation
    case = Case(model, codes, level_sizes, kind)
    check_exact(case.search(prompts, k=len(codes), excluded=excluded), case, prompts, excluded)


@settings(max_examples=8, deadline=None)
@given(situation=situations(), data=st.data())
@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("kind", [TreeSearch, ExactSearch])
def test_best_of_the_filtered_catalogue_with_offsets(model, kind, scoring, situation, data):
    """Any allow-lists, exclusions, offsets and k: what scoring every item and sorting gives."""
    codes, level_sizes, prompts, excluded = situation
    case = Case(model, codes, level_sizes, kind)
    rows = st.none() | st.lists(st.integers(0, len(codes) - 1))
    allowed = [data.draw(rows) for _ in prompts]
    offsets = np.array(data.draw(st.lists(st.floats(-3, 3), min_size=len(codes), max_size=len(codes))), np.float32)
    filters = [
        Filter(None if mine is None else np.array(mine, int), gone)
        for mine, gone in zip(allowed, excluded, strict=True)
    ]
    k = data.draw(st.integers(1, len(codes)))
    beams = len(codes) if kind is TreeSearch else data.draw(st.integers(1, 4))
    ranking = case.searcher(scoring=scoring, beams=beams).search(prompts, k, filters, offsets=offsets)
    for items, scores, prompt, mine, gone in zip(
        ranking.items, ranking.scores, prompts, allowed, excluded, strict=True
    ):
        expected = case.exhaustive(prompt, scoring) + offsets
        may = np.setdiff1d(np.arange(len(codes)) if mine is None else mine, gone).astype(int)
        found = items[items >= 0]
        assert len(set(found)) == len(found) == min(k, len(may))
        assert set(found) <= set(may)
        np.testing.assert_allclose(scores[: len(found)], expected[found], rtol=0, atol=SCORES)
        np.testing.assert_allclose(expected[found], np.sort(expected[may])[::-1][:k], rtol=0, atol=SCORES)


@pytest.mark.parametrize("beams", [2, 3, 7])
def test_narrow_beams_are_those_of_stock_generate(model, beams):
    """Scoring vocab: item for item and score for score, though far from exact at this width."""
    level_sizes = [5, 4, 6]
    rng = np.random.default_rng(3)
    codes = np.stack(np.unravel_index(rng.choice(120, 60, replace=False), level_sizes), axis=1)
    case = Case(model, codes, level_sizes)
    ranking = case.search(PROMPTS, k=beams, beams=beams)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for items, scores, prompt in zip(ranking.items, ranking.scores, PROMPTS, strict=True):
        with plain_generation(inner):
            output = inner.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones((1, len(prompt)), dtype=torch.int64),
                logits_processor=[TrieConstraint(case.trie, case.vocabulary, len(prompt), beams)],
                generation_config=GenerationConfig(
                    num_beams=beams,
                    num_return_sequences=beams,
                    max_new_tokens=len(level_sizes),
                    length_penalty=0.0,
                    pad_token_id=0,
                    return_dict_in_generate=True,
                    output_scores=True,
                ),
            )
        answers = output.sequences[:, len(prompt) :].numpy()
        assert case.vocabulary.token_ids(codes[items]).tolist() == answers.tolist()
        np.testing.assert_allclose(scores, output.sequences_scores.numpy(), rtol=0, atol=SCORES)


def test_what_prompts_begin_with_is_run_once(model, monkeypatch):
    """The same answers, windows of attention included, from fewer tokens."""
    level_sizes = [5, 4, 6]
    codes = np.stack([np.random.default_rng(1).integers(0, size, 40) for size in level_sizes], axis=1)
    case = Case(model, codes, level_sizes)
    search = case.searcher()
    ran = []
    forward = search.model.base_model.forward

    def counted(*args, input_ids, **kwargs):
        ran.append(tuple(input_ids.shape))
        return forward(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(search.model.base_model, "forward", counted)
    assert shared_start(ALIKE) == 19  # the shortest keeps a token for itself
    ranking = search.search(ALIKE, k=40)
    assert ran[:2] == [(1, 19), (6, 15)]
    check_exact(ranking, case, ALIKE, [np.empty(0, np.int64)] * len(ALIKE))


@pytest.mark.parametrize(("prompts", "shared"), [(ALIKE[:1], 0), ([START[:16], START], 0), ([START[:17], START], 16)])
def test_prompts_alike(prompts, shared):
    assert shared_start(prompts) == shared


def test_model_is_left_as_it_was(model):
    """Decoding in other arithmetic converts a copy."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    case = Case(model, np.array([[0, 0], [1, 1]]), [2, 2])
    case.search(PROMPTS, k=2, dtype="bfloat16")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(tensor.dtype == after[name].dtype and tensor.equal(after[name]) for name, tensor in before.items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    shared = case.searcher().model
    assert {id(parameter) for parameter in shared.parameters()} <= {id(parameter) for parameter in model.parameters()}


def test_prompt_alone_equals_prompt_in_a_batch(case):
    together = case.search(PROMPTS, k=10, beams=12)
    backwards = case.search(PROMPTS[::-1], k=10, beams=12)
    np.testing.assert_array_equal(together.items, backwards.items[::-1])
    for row, prompt in enumerate(PROMPTS):
        alone = case.search([prompt], k=10, beams=12)
        np.testing.assert_array_equal(alone.items[0], together.items[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], atol=SCORES)


@pytest.mark.parametrize("beams", [1, 2])
def test_narrow_search_gives_real_items(case, beams):
    ranking = case.search(PROMPTS, k=1, beams=beams)
    for row, prompt in enumerate(PROMPTS):
        item = ranking.items[row, 0]
        assert ranking.scores[row, 0] == pytest.approx(case.exhaustive(prompt)[item], abs=SCORES)


def test_more_answers_than_items(case):
    ranking = case.search(PROMPTS[:1], k=50)
    assert sorted(ranking.items[0, :40]) == list(range(40))
    assert (ranking.items[0, 40:] == -1).all()


def test_own_generation_config_is_left_as_it_was(case):
    inner = case.model.get_base_model() if hasattr(case.model, "get_base_model") else case.model
    before = copy.deepcopy(inner.generation_config.to_dict())
    assert before["do_sample"]
    case.search(PROMPTS[:1], k=3)
    assert inner.generation_config.to_dict() == before
    assert case.model.generation_config.to_dict() == before


def test_bfloat16_stays_close(case):
    exact, rough = case.search(PROMPTS, k=40), case.search(PROMPTS, k=40, dtype="bfloat16")
    for row in range(len(PROMPTS)):
        assert sorted(rough.items[row]) == list(range(40))
        by_item = [np.argsort(ranking.items[row]) for ranking in (exact, rough)]
        np.testing.assert_allclose(exact.scores[row][by_item[0]], rough.scores[row][by_item[1]], atol=0.5)
