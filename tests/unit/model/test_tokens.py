"""Item tokens in tokenizers: small ones, and the real vocabularies where their files are at hand."""

from pathlib import Path

import numpy as np
import pytest

from llmrec.errors import UserError
from llmrec.model.tokens import ItemVocabulary, token_names

TOKENIZERS = Path(__file__).parents[4] / "shared" / "data" / "tokenizers"
TEXTS = [
    "A gentle shampoo for kids, 250 ml",
    "  two  spaces\nand a line break\t",
    "<a_1 > <a_> <b_2 is not a token, a_1> neither",
    "Crème brûlée — 抹茶 🍵 \u202e مرحبا",
    "<|endoftext|>",
]


def gpt2():
    """GPT-2's tokenizer out of its published merges; all byte-level vocabularies follow from those."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    lines = (TOKENIZERS / "gpt2" / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    merges = [(left, right) for left, right in (line.split(" ") for line in lines if line)]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges), "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def qwen3():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TOKENIZERS / "qwen3")


@pytest.mark.skipif(not TOKENIZERS.is_dir(), reason="needs ../shared/data/tokenizers")
@pytest.mark.parametrize("load", [gpt2, qwen3])
def test_real_vocabularies_only_grow(load):
    tokenizer = load()
    before, rows = dict(tokenizer.get_vocab()), len(tokenizer)
    encoded = [tokenizer(text)["input_ids"] for text in TEXTS]
    sizes = [256, 256, 256, 7]
    vocabulary = ItemVocabulary.add_to(tokenizer, sizes)

    after = tokenizer.get_vocab()
    assert {token: after[token] for token in before} == before
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == encoded
    assert vocabulary.all_ids.tolist() == list(range(rows, rows + sum(sizes)))
    assert len(tokenizer) == rows + sum(sizes)
    for name, token in zip([n for level in vocabulary.names for n in level], vocabulary.all_ids, strict=True):
        assert tokenizer(name, add_special_tokens=False)["input_ids"] == [token]


@pytest.mark.skipif(not TOKENIZERS.is_dir(), reason="needs ../shared/data/tokenizers")
@pytest.mark.parametrize("load", [gpt2, qwen3])
def test_real_tokenizers_keep_item_tokens_when_saved(load, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = load()
    vocabulary = ItemVocabulary.add_to(tokenizer, [9, 9])
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    np.testing.assert_array_equal(ItemVocabulary.of(again, [9, 9]).all_ids, vocabulary.all_ids)
    text = f"Bought: {vocabulary.text(np.array([3, 4]))}, and{vocabulary.text(np.array([8, 0]))}it"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.decode(again(text, add_special_tokens=False)["input_ids"], skip_special_tokens=True) == text


def test_names():
    assert token_names([2, 1, 3]) == [["<a_0>", "<a_1>"], ["<b_0>"], ["<c_0>", "<c_1>", "<c_2>"]]
    assert token_names([1], prefix="item-x_") == [["<item-x_a_0>"]]


@pytest.mark.parametrize("prefix", ["<", "a b", "x>", "\n"])
def test_prefix_that_breaks_a_name_is_refused(prefix):
    with pytest.raises(UserError, match=r"base\.token_prefix"):
        token_names([2], prefix)


def test_more_levels_than_letters_are_refused():
    assert len(token_names([1] * 26)) == 26
    with pytest.raises(UserError, match=r"tokenize\.levels"):
        token_names([1] * 27)


def test_tokens_of_the_base_are_not_taken_over(shop):
    with pytest.raises(UserError, match=r"already has the token '<a_0>' \(and 8 more.*base\.token_prefix"):
        ItemVocabulary.add_to(shop.tokenizer, [4, 5])
    rows = len(shop.tokenizer)
    assert ItemVocabulary.add_to(shop.tokenizer, [4, 5], prefix="item_").all_ids.tolist() == list(range(rows, rows + 9))


def test_missing_item_tokens_are_named(shop):
    with pytest.raises(UserError, match="lacks 2 item tokens, the first is '<b_5>'"):
        ItemVocabulary.of(shop.tokenizer, [4, 7])


def test_codes_become_tokens_text_and_codes_again(shop):
    vocabulary = shop.vocabulary
    assert vocabulary.level_sizes == [4, 5]
    tokens = vocabulary.token_ids(shop.codes)
    assert tokens.shape == shop.codes.shape
    for row, expected in zip(shop.codes, tokens, strict=True):
        assert shop.tokenizer(vocabulary.text(row), add_special_tokens=False)["input_ids"] == expected.tolist()
    table = vocabulary.code_of_token(len(shop.tokenizer))
    np.testing.assert_array_equal(table[tokens], shop.codes)
    assert (np.delete(table, vocabulary.all_ids) == -1).all()
    assert vocabulary.text(np.array([3])) == "<a_3>"
