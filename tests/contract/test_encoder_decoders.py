"""Encoder-decoders under the beam search: equal to scoring the whole catalogue by the model's own forward passes."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tolerances import SCORES
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    GenerationConfig,
    LongT5Config,
    MT5Config,
    PegasusConfig,
    SwitchTransformersConfig,
    T5Config,
    UMT5Config,
)

from llmrec.decode.choose import make_search
from llmrec.decode.config import DecodeConfig
from llmrec.decode.context import ItemHead, before_each_pass
from llmrec.decode.exact import ExactSearch
from llmrec.decode.filters import Filter
from llmrec.decode.generate import GenerateSearch
from llmrec.decode.tree import TreeSearch
from llmrec.index.trie import ItemTrie
from llmrec.model.forward import answer_states
from llmrec.model.tokens import ItemVocabulary
from llmrec.recommender.discover import _next_codes

TOKENS, SIZES, PAD, START = 60, [5, 4, 6], 0, 3
STARTS = TOKENS - sum(SIZES) + np.cumsum([0, *SIZES])
VOCABULARY = ItemVocabulary(
    [[f"<{level}_{code}>" for code in range(size)] for level, size in enumerate(SIZES)],
    [np.arange(a, b) for a, b in itertools.pairwise(STARTS)],
)
CODES = np.stack([np.random.default_rng(1).integers(0, size, 30) for size in SIZES], axis=1)
TRIE = ItemTrie.build(CODES, SIZES)
PROMPTS = [np.random.default_rng(n).integers(0, TOKENS, n).tolist() for n in (3, 40, 1, 9)]
SPECIAL = {"vocab_size": TOKENS, "pad_token_id": PAD, "eos_token_id": 1, "decoder_start_token_id": START}
# The distances of a beam fall into several buckets.
FAMILY = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 4}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 2}
CONFIGS = {
    "t5": lambda: T5Config(**SPECIAL, **FAMILY),
    "t5, version 1.1": lambda: T5Config(
        **SPECIAL, **FAMILY, feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_decoder_layers=3
    ),
    "mt5": lambda: MT5Config(**SPECIAL, **FAMILY),
    "umt5": lambda: UMT5Config(**SPECIAL, **FAMILY),
    "longt5": lambda: LongT5Config(**SPECIAL, **FAMILY, local_radius=8),
    "switch_transformers": lambda: SwitchTransformersConfig(**SPECIAL, **FAMILY),
    "bart": lambda: BartConfig(**SPECIAL, **BART),
    "pegasus": lambda: PegasusConfig(**SPECIAL, **BART),
}
NO_TREE = ("bart", "pegasus")
"""They count the positions of the decoder by the tokens in its cache."""


def make_model(name):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(CONFIGS[name]())
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.update(do_sample=True, temperature=0.3, top_k=3, num_beams=2)
    return model.eval()


@pytest.fixture(scope="module", params=CONFIGS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return make_model(name)


@pytest.fixture(scope="module")
def t5():
    return make_model("t5")


@torch.inference_mode()
def exhaustive(model, prompt, scoring="vocab"):
    """float32 [N, L]: the log-probability of each code of each item after `prompt`, by a plain forward pass."""
    answers = torch.from_numpy(VOCABULARY.token_ids(CODES))
    read = torch.nn.functional.pad(answers[:, :-1], (1, 0), value=START)
    prompts = torch.tensor(prompt).expand(len(CODES), -1)
    logits = model(input_ids=prompts, decoder_input_ids=read, use_cache=False).logits
    for level, tokens in enumerate(map(torch.from_numpy, VOCABULARY.ids)):
        among = torch.full(logits[:, level].shape, scoring == "vocab")
        if scoring == "level":
            among[:, tokens] = True
        if scoring == "catalogue":
            for row, start in enumerate(CODES[:, :level]):
                among[row, answers[(CODES[:, :level] == start).all(axis=1), level]] = True
        logits[:, level] = logits[:, level].masked_fill(~among, -torch.inf)
    return logits.log_softmax(-1).gather(2, answers[..., None])[..., 0].numpy()


def searcher(kind, model, scoring="vocab", **settings):
    return kind(model, VOCABULARY, TRIE, DecodeConfig(dtype="float32", scoring=scoring, **settings), PAD)


def test_the_trial_chooses_a_search_that_is_exact(name, model):
    search = make_search(model, VOCABULARY, TRIE, DecodeConfig(dtype="float32", scoring="vocab"), PAD)
    assert isinstance(search, GenerateSearch if name in NO_TREE else TreeSearch)
    ranking = search.search(PROMPTS, len(CODES))
    for items, scores, prompt in zip(ranking.items, ranking.scores, PROMPTS, strict=True):
        expected = exhaustive(model, prompt).sum(axis=1)
        assert sorted(items) == list(range(len(CODES)))
        np.testing.assert_allclose(scores, expected[items], rtol=0, atol=SCORES)
    assert model.generation_config.do_sample, "left as it was"


@pytest.mark.parametrize("scoring", ["vocab", "level", "catalogue"])
@pytest.mark.parametrize("kind", [TreeSearch, ExactSearch])
def test_the_best_of_a_filtered_catalogue_with_offsets(t5, kind, scoring):
    rng = np.random.default_rng(4)
    offsets = rng.normal(size=len(CODES)).astype(np.float32)
    allowed = [rng.permutation(len(CODES))[:n] for n in (30, 12, 5, 1)]
    search = searcher(kind, t5, scoring, beams=len(CODES) if kind is TreeSearch else 3)
    ranking = search.search(PROMPTS, 5, [Filter(rows) for rows in allowed], offsets=offsets)
    for items, scores, prompt, rows in zip(ranking.items, ranking.scores, PROMPTS, allowed, strict=True):
        expected = exhaustive(t5, prompt, scoring).sum(axis=1) + offsets
        best = np.sort(expected[rows])[::-1][:5]
        np.testing.assert_allclose(scores[: len(best)], best, rtol=0, atol=SCORES)
        assert set(items[: len(best)]) <= set(rows.tolist())
        assert (items[len(best) :] == -1).all()


def test_each_code_of_given_items(t5):
    items = np.array([[0, 7, 7, -1], [3, -1, 29, 1], [2, 4, 6, 8], [-1, -1, -1, -1]])
    search = searcher(TreeSearch, t5, "catalogue")
    scores = search.code_scores(search.prefill(PROMPTS), items)
    for row, prompt in enumerate(PROMPTS):
        expected = np.where(items[row, :, None] >= 0, exhaustive(t5, prompt, "catalogue")[items[row]], 0.0)
        np.testing.assert_allclose(scores[row], expected, rtol=0, atol=SCORES)


@pytest.mark.parametrize("beams", [2, 3, 7])
def test_narrow_beams_are_those_of_stock_generate(t5, beams):
    """With `prefix_allowed_tokens_fn`, the constraint of transformers itself."""
    codes = np.unique(CODES, axis=0)  # one item for each semantic ID
    answers = VOCABULARY.token_ids(codes)

    def allowed(_, written):
        said = written[1:].tolist()
        return np.unique(answers[(answers[:, : len(said)] == said).all(axis=1), len(said)]).tolist()

    config = DecodeConfig(dtype="float32", scoring="vocab", beams=beams)
    ranking = TreeSearch(t5, VOCABULARY, ItemTrie.build(codes, SIZES), config, PAD).search(PROMPTS, beams)
    for items, scores, prompt in zip(ranking.items, ranking.scores, PROMPTS, strict=True):
        output = t5.generate(
            torch.tensor([prompt]),
            prefix_allowed_tokens_fn=allowed,
            generation_config=GenerationConfig(
                do_sample=False,
                num_beams=beams,
                num_return_sequences=beams,
                max_new_tokens=len(SIZES),
                length_penalty=0.0,
                pad_token_id=PAD,
                decoder_start_token_id=START,
                return_dict_in_generate=True,
                output_scores=True,
            ),
        )
        assert output.sequences[:, 1:].tolist() == answers[items].tolist()
        np.testing.assert_allclose(scores, output.sequences_scores.numpy(), rtol=0, atol=SCORES)


def test_the_encoder_runs_once_per_prompt(t5, monkeypatch):
    search = searcher(TreeSearch, t5, "catalogue")
    ran = {"encoder": [], "decoder": []}
    for part, shapes in ran.items():
        stack = getattr(search.model, part)

        def counted(*args, input_ids, own=stack.forward, shapes=shapes, **kwargs):
            shapes.append(tuple(input_ids.shape))
            return own(*args, input_ids=input_ids, **kwargs)

        monkeypatch.setattr(stack, "forward", counted)
    prefilled = search.prefill(PROMPTS)
    first, again = (search.rank(prefilled, 10) for _ in range(2))
    assert ran["encoder"] == [(4, 40)]
    assert len(ran["decoder"]) == 1 + 2 * (len(SIZES) - 1), "the start token, and two searches"
    assert {rows for rows, _ in ran["decoder"]} == {4}, "the beams of a user share a row"
    np.testing.assert_array_equal(first.items, again.items)


def test_threads_share_a_search(t5):
    """Serving decodes quick and long requests at once, by one model."""
    search = searcher(TreeSearch, t5, "catalogue")
    parts = [PROMPTS[:1], PROMPTS[1:]] * 2
    expected = [search.search(prompts, 10) for prompts in parts]
    with ThreadPoolExecutor(len(parts)) as threads:
        rounds = [list(threads.map(search.search, parts, [10] * len(parts))) for _ in range(10)]
    for one, alone in zip(itertools.chain.from_iterable(rounds), itertools.cycle(expected), strict=False):
        np.testing.assert_array_equal(one.items, alone.items)
        np.testing.assert_allclose(one.scores, alone.scores, rtol=0, atol=SCORES)


def test_each_pass_can_be_stopped(t5):
    """Abandoned requests end, and long ones give way."""

    def stop():
        raise InterruptedError

    search = searcher(TreeSearch, t5, "catalogue")
    with before_each_pass(stop), pytest.raises(InterruptedError):
        search.search(PROMPTS, 10)


@torch.inference_mode()
def test_hidden_states_do_not_depend_on_the_batch(name, model):
    """They are what the dense head reads."""
    search = make_search(model, VOCABULARY, TRIE, DecodeConfig(dtype="float32", scoring="vocab"), PAD)
    decoder = model.get_decoder()
    alone = [
        decoder(
            input_ids=torch.tensor([[START]]),
            encoder_hidden_states=model.get_encoder()(input_ids=torch.tensor([prompt])).last_hidden_state,
            use_cache=False,
        ).last_hidden_state[:, 0]
        for prompt in PROMPTS
    ]
    torch.testing.assert_close(search.prefill(PROMPTS).hidden, torch.cat(alone), rtol=0, atol=SCORES)


@torch.inference_mode()
def test_states_and_next_codes_after_prefixes(t5):
    """What the diagnosis and `discover` read."""
    prefixes = torch.tensor([[0, 1], [2, 3], [4, 0]])
    tokens = torch.from_numpy(np.stack([VOCABULARY.ids[level][column] for level, column in enumerate(prefixes.T)], 1))
    head = ItemHead(t5, VOCABULARY, "vocab", torch.float32)
    logits = torch.cat(
        [
            t5(
                input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[START, *answer]]), use_cache=False
            ).logits
            for prompt, answer in zip(PROMPTS[:3], tokens.tolist(), strict=True)
        ]
    )
    states = answer_states(t5, PROMPTS[:3], tokens, PAD)
    found = torch.stack([head.vocabulary(row) for row in states])
    torch.testing.assert_close(found, logits.log_softmax(-1), rtol=0, atol=SCORES)
    search = searcher(TreeSearch, t5, batch_size=2)
    expected = answer_states(t5, [PROMPTS[1]] * 3, tokens, PAD)[:, -1]
    after = _next_codes(search, head, PROMPTS[1], prefixes)
    torch.testing.assert_close(after, head.level(expected, 2), rtol=0, atol=SCORES)
