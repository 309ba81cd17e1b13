"""Where the rows of the item tokens start."""

import numpy as np
import pytest
import torch

from llmrec.embed.encoder import EmbedConfig
from llmrec.model.adapter import add_item_rows, code_vectors, gaussian, near_mean, row_start, word_shares
from llmrec.model.base import make_base
from llmrec.model.config import BaseConfig
from llmrec.model.tokens import ItemVocabulary
from llmrec.quantize.tokenizer import ItemTokenizer

OLD = torch.randn(300, 16, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 2, 16) + 3


def draw(start, count, seed=0):
    return start(OLD, count, torch.Generator().manual_seed(seed))


def is_gaussian(rows, seed=0):
    """Bit for bit what `gaussian` draws in the same places."""
    count = len(rows)
    return torch.equal(rows, draw(gaussian, count, seed))


def items(catalog, method="rq-kmeans", levels=2, **settings):
    embed = EmbedConfig(encoder="tfidf-svd", dim=8)
    return ItemTokenizer(method=method, levels=levels, codes=4, embed=embed, **settings).fit(catalog)


@pytest.fixture(scope="module")
def tokenizer(tiny_catalog):
    """With the item tokens of two levels of 4 codes."""
    made = make_base(BaseConfig(hidden_size=16, layers=1, heads=2, vocabulary=300), tiny_catalog.texts("{title}"))[1]
    ItemVocabulary.add_to(made, [4, 4])
    return made


def ids(tokenizer, count):
    return np.arange(len(tokenizer) - count, len(tokenizer))


def test_gaussian_has_the_scale_of_the_old_rows():
    rows = draw(gaussian, 4000)
    torch.testing.assert_close(rows.mean(0), OLD.mean(0), rtol=0, atol=0.15)
    torch.testing.assert_close(rows.std(0), OLD.std(0), rtol=0.1, atol=0)


def test_near_mean_is_near_the_mean_and_distinct():
    rows = draw(near_mean, 50)
    assert ((rows - OLD.mean(0)).abs() < 0.06 * OLD.std(0)).all()
    assert len(rows.unique(dim=0)) == 50


def test_word_shares_of_known_texts(tokenizer):
    texts = ["aa b", "b", "", "<a_0> b"]
    codes = np.array([[0, 0], [0, 1], [2, 1], [3, 1]])
    shares = word_shares(tokenizer, ids(tokenizer, 8), codes, [4, 4], texts).to_dense().numpy()
    assert shares.shape == (8, len(tokenizer) - 8)

    def spread(*of):
        """Each text's tokens add up to 1; then the mean over the texts."""
        row = np.zeros(shares.shape[1])
        for text in of:
            tokens = tokenizer(text)["input_ids"]
            np.add.at(row, tokens, 1 / len(tokens) / len(of))
        return row

    expected = [
        spread("aa b", "b"),
        spread(),
        spread(),
        spread(" b"),
        spread("aa b"),
        spread("b", " b"),
        *[spread()] * 2,
    ]
    np.testing.assert_allclose(shares, expected, atol=1e-6)


def test_text_rows_are_means_of_words(tokenizer, tiny_catalog):
    codes = items(tiny_catalog, collisions="share")
    texts = tiny_catalog.texts("{title}")
    start = row_start("text", tokenizer, ids(tokenizer, 8), codes, texts, seed=0)
    old = torch.randn(len(tokenizer) - 8, 16)
    rows = start(old, 8, torch.Generator().manual_seed(0))
    fallback = gaussian(old, 8, torch.Generator().manual_seed(0))
    for code in range(8):
        under = [text for text, row in zip(texts, codes.codes, strict=True) if row[code // 4] == code % 4]
        words = [old[tokenizer(text)["input_ids"]].mean(0) for text in under]
        torch.testing.assert_close(rows[code], torch.stack(words).mean(0) if words else fallback[code])


def test_code_vectors_are_the_codebooks_of_a_sum(tiny_catalog):
    tokenizer = items(tiny_catalog)
    vectors = code_vectors(tokenizer.quantizer, tokenizer.codes, seed=0)
    for found, codebook in zip(vectors, tokenizer.quantizer.codebooks, strict=True):
        np.testing.assert_allclose(found, codebook - codebook.mean(0), atol=1e-5)


@pytest.mark.parametrize("method", ["rq-kmeans", "pq", "hierarchical-kmeans"])
def test_codebook_rows_keep_neighbours_and_scale(tokenizer, tiny_catalog, method):
    tokenizer_ = items(tiny_catalog, method)
    start = row_start("codebook", tokenizer, ids(tokenizer, 8), tokenizer_, [], seed=0)
    rows = draw(start, 8)
    for level, vectors in enumerate(code_vectors(tokenizer_.quantizer, tokenizer_.codes, 0)):
        mine = rows[4 * level : 4 * level + 4]
        torch.testing.assert_close(mine.mean(0), OLD.mean(0), rtol=1e-3, atol=1e-4)
        alive = torch.from_numpy(vectors).any(1)
        assert alive.sum() >= 2
        torch.testing.assert_close(mine.std(0, correction=0), OLD.std(0), rtol=1e-3, atol=1e-4)
    assert torch.equal(rows, draw(start, 8, seed=5)), "nothing random but the projection, which has its own seed"


def test_a_dedup_level_has_no_vectors_and_starts_gaussian(tokenizer, tiny_catalog):
    tokenizer_ = items(tiny_catalog)
    assert len(tokenizer_.level_sizes) == 3
    count = sum(tokenizer_.level_sizes)
    rows = draw(row_start("codebook", tokenizer, ids(tokenizer, 8), tokenizer_, [], seed=0), count)
    expected = draw(gaussian, count)
    assert torch.equal(rows[8:], expected[8:])
    assert not torch.isclose(rows[:8], expected[:8]).any(dim=1).all()


def test_random_codes_have_no_vectors_and_start_gaussian(tokenizer, tiny_catalog):
    random = items(tiny_catalog, "random")
    assert not any(level.any() for level in code_vectors(random.quantizer, random.codes, seed=0))
    count = sum(random.level_sizes)
    rows = draw(row_start("codebook", tokenizer, ids(tokenizer, 8), random, [], seed=0), count)
    assert torch.equal(rows, draw(gaussian, count))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_both_matrices_start_from_their_own_old_rows(make_shop, tied):
    shop = make_shop(tied)
    size = len(shop.tokenizer)
    weights = [shop.model.get_input_embeddings().weight, shop.model.get_output_embeddings().weight]
    before = [weight.detach().clone() for weight in weights]
    item_ids = shop.vocabulary.all_ids
    add_item_rows(shop.model, item_ids, size, seed=0, start=lambda old, count, _: old[:1].expand(count, -1) * 2)
    for was, now in zip(before, weights, strict=True):
        assert torch.equal(now[item_ids], (was[:1] * 2).expand(len(item_ids), -1))
        assert torch.equal(now[: item_ids[0]], was[: item_ids[0]])
