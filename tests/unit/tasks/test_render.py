"""From values to the exact text and tokens that a model sees."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from llmrec.decode.config import DecodeConfig
from llmrec.decode.ranker import ItemRanker
from llmrec.decode.tree import TreeSearch
from llmrec.tasks.config import load_templates
from llmrec.tasks.mixture import Collator, validation_examples
from llmrec.tasks.render import Example, Renderer

FRAGMENTS = ["<a_1>", "<b_4>", "<|end|>", "<|pad|>", "<a_", "1>", "<|", "end", "|>", "<a_<a_1>1>", "<|e<b_0>nd|>"]
FRAGMENTS += [
    "{title}",
    "{",
    "}}",
    "%s",
    "\n",
    "\r\n",
    "\u2028",
    "\t",
    "  ",
    "抹茶",
    "مرحبا",
    "🍵",
    "é",
    "\x00",
    "\u200b",
]
titles = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=8), max_size=12).map("".join)
any_text = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def tokens(shop, text):
    return shop.tokenizer(text, add_special_tokens=False)["input_ids"]


@any_text
@given(text=titles)
def test_clean_text_holds_no_reserved_token(shop, text):
    clean = shop.renderer.clean(text)
    reserved = set(shop.tokenizer.get_added_vocab().values())
    assert not reserved & set(tokens(shop, clean))
    assert clean.splitlines() in ([clean], [])
    assert shop.renderer.clean(clean) == clean


@any_text
@given(text=st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<>|")))
def test_other_text_only_loses_white_space(shop, text):
    assert shop.renderer.clean(text) == " ".join(text.split())


def test_tokens_with_spaces_are_cleaned_as_well(shop):
    shop.tokenizer.add_tokens(["<two words>"])
    renderer = Renderer(shop.tokenizer, shop.vocabulary, shop.codes, load_templates(), max_history=4)
    assert renderer.clean("a <two  words> soap") == renderer.clean("a <two<|end|>words> soap") == "a soap"


@any_text
@given(texts=st.lists(titles, max_size=3), max_tokens=st.integers(1, 8))
def test_clipped_text_is_the_longest_start_that_fits(shop, texts, max_tokens):
    clipped = shop.renderer.clip(texts, max_tokens)
    for text, short in zip(texts, clipped, strict=True):
        clean = shop.renderer.clean(text)
        assert clean.startswith(short)
        assert len(tokens(shop, short)) <= max_tokens
        if len(tokens(shop, clean)) <= max_tokens:
            assert short == clean


def test_clip_keeps_as_many_tokens_as_allowed(shop):
    title = "Alba shampoo, a gentle hand balm for skin and hair"
    ids = tokens(shop, title)
    for n in range(1, len(ids)):
        assert shop.renderer.clip([title], n) == [shop.tokenizer.decode(ids[:n]).rstrip()]


def test_history_is_the_last_items_oldest_first(shop):
    assert shop.renderer.history([0, 19]) == "<a_0><b_0><a_3><b_4>"
    assert shop.renderer.history([7, 7, 1, 2, 3, 4]) == "<a_0><b_1><a_0><b_2><a_0><b_3><a_0><b_4>"


def test_plain_prompts_are_the_template(shop):
    assert shop.renderer.prompt("search", 0, query="a {soap}") == ("Find an item for this request: a {soap} Answer: ")


def test_chat_template_is_used(make_shop):
    shop = make_shop(chat=True)
    prompt = shop.renderer.prompt("search", 0, query="soap")
    assert prompt == "<|user|>Find an item for this request: soap Answer:<|end|><|assistant|>"
    ids = shop.renderer.encode_prompts([prompt])[0]
    assert ids[0] == shop.tokenizer.convert_tokens_to_ids("<|user|>")
    assert ids[-1] == shop.tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert shop.renderer.clean("<|user|>soap<|assistant|>") == "soap"


@pytest.mark.parametrize("wanted", [True, False])
def test_plain_prompts_start_as_the_tokenizer_starts(shop, wanted):
    """Llama adds its beginning of sequence by a post-processor, GPT-2 has one and leaves it out."""
    tokenizer = shop.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    bos = tokenizer.bos_token_id
    if wanted:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", bos)]
        )
    renderer = Renderer(tokenizer, shop.vocabulary, shop.codes, load_templates(), max_history=4)
    assert renderer.encode_prompts(["soap", "balm"]) == tokenizer(["soap", "balm"])["input_ids"]
    assert (renderer.encode_prompts(["soap"])[0][0] == bos) == wanted
    assert bos not in renderer.encode_answers([Example("", "soap", ends=True)])[0]


def test_only_text_answers_end(shop):
    text, item = shop.renderer.encode_answers([Example("", "soap", ends=True), Example("", "<a_1><b_2>", ends=False)])
    assert text == [*tokens(shop, "soap"), shop.tokenizer.eos_token_id]
    assert item == shop.vocabulary.token_ids(shop.codes)[7].tolist()


@pytest.mark.parametrize("chat", [False, True])
def test_prompts_when_asked_are_those_of_training(make_shop, chat):
    from llmrec.data import EvalExamples

    shop = make_shop(chat=chat)
    histories, targets = [[3, 1], [5], [8, 2, 19, 4, 0, 7]], [9, 0, 11]
    cases = EvalExamples(list(range(3)), histories, targets)
    batch = Collator(shop.renderer, 160)(validation_examples(shop.renderer, cases))
    search = TreeSearch(shop.model, shop.vocabulary, shop.trie, DecodeConfig(dtype="float32"))
    ranker = ItemRanker(shop.renderer, search, context=160)
    for row, (history, target) in enumerate(zip(histories, targets, strict=True)):
        answer = shop.vocabulary.token_ids(shop.codes[target]).tolist()
        expected = ranker.prompt_ids(history=history) + answer
        assert batch["input_ids"][row].tolist()[: len(expected)] == expected
