"""The text decoder by hand, and on a planted catalogue whose texts tell what its vectors hardly show."""

import itertools
import math

import numpy as np
import pytest
import torch
from tolerances import SUMS

from llmrec.errors import UserError
from llmrec.quantize import LossConfig, RQVAEConfig, TokenizeConfig
from llmrec.quantize.neural import words
from llmrec.quantize.neural.rq_vae import RQVAE
from llmrec.quantize.neural.words import WordDecoder, count_words, spell, word_loss

TEXTS = ["a red ball", "Red, red KITE!", "", "a blue ball 7", "nothing else", "wool"]


def test_each_text_has_its_different_words_in_equal_shares():
    vocabulary, found = count_words(TEXTS)
    assert vocabulary == ["ball", "red"]  # the other words are in one text only, and "a" and "7" are not words
    np.testing.assert_array_equal(found.toarray(), [[0.5, 0.5], [0, 1], [0, 0], [1, 0], [0, 0], [0, 0]])


def test_the_vocabulary_has_the_words_of_the_most_texts(monkeypatch):
    monkeypatch.setattr(words, "VOCABULARY", 2)
    texts = ["ash", "ash beech", "ash oak", "beech oak", "oak"]
    assert count_words(texts)[0] == ["ash", "oak"]


def test_texts_without_a_common_word_are_refused():
    with pytest.raises(UserError, match=r"loss\.words: no word is in the texts of 2 of 3 items.* embed\.template"):
        count_words(["one", "two", ""])


def test_the_decoder_begins_with_the_frequencies_and_keeps_its_words():
    vocabulary = ["café", "茶杯", "mug"]
    decoder = WordDecoder(4, vocabulary)
    decoder.start(np.array([0.5, 0.2, 0.3], np.float32))
    torch.testing.assert_close(decoder(torch.zeros(4)).exp(), torch.tensor([0.5, 0.2, 0.3]))
    assert spell(decoder.state_dict()["stored"].numpy()) == vocabulary


def test_the_loss_by_loops():
    told = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    has = [[0, 3], [1], [], [0, 2, 4]]
    shares = torch.zeros(4, 5)
    for row, own in enumerate(has):
        shares[row, own] = 1 / max(len(own), 1)
    terms = [
        -sum(told[row, level, word].item() for word in own) / len(own)
        for row, own in enumerate(has)
        for level in range(3)
        if own
    ]
    assert word_loss(told, shares).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert word_loss(told, torch.zeros(4, 5)).item() == 0


def test_the_telling_words_are_those_that_the_codes_make_likely():
    decoder = WordDecoder(2, ["ball", "kite", "the"])
    decoder.start(np.array([0.2, 0.2, 0.6], np.float32))
    with torch.no_grad():
        decoder.linear.weight.copy_(torch.tensor([[1.0, 0], [0, 2], [0, 0]]))
    none, kite, both = decoder.telling(torch.tensor([[0.0, 0], [0, 1], [2, 1]]), 5)
    assert none == []
    (only,) = kite
    assert only.word == "kite"
    assert only.probability == pytest.approx(0.2 * math.exp(2) / (0.8 + 0.2 * math.exp(2)), rel=1e-5)
    # equal logits raise both alike
    assert {each.word for each in both} == {"ball", "kite"}
    assert decoder.telling(torch.tensor([[2.0, 1]]), 1)[0][0] in both


# a planted catalogue: 4 shapes, 2 sizes, 2 colours, 12 items each

SHAPES, COLOURS = ["cube", "ball", "cone", "ring"], ["red", "blue"]
SHAPE, SIZE, COLOUR = np.array(list(itertools.product(range(4), range(2), range(2)))).repeat(12, axis=0).T
SAID = [f"{SHAPES[shape]} {COLOURS[colour]}" for shape, colour in zip(SHAPE, COLOUR, strict=True)]


def shown() -> np.ndarray:
    """Vectors: eight dimensions of shape, four of size, and one of colour."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(4, 8))[SHAPE], np.repeat(2.0 * SIZE[:, None], 4, axis=1), COLOUR[:, None]]
    x = np.concatenate(parts, axis=1)
    return (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)


def fit(texts: list[str] | None = SAID, seed: int = 0, **loss: float) -> RQVAE:
    """As many tuples of codes as shapes and one of size and colour: 4 x 2."""
    network = RQVAEConfig(hidden=[32], latent=8, epochs=60, batch_size=64, learning_rate=0.01, loss=LossConfig(**loss))
    return RQVAE(TokenizeConfig("rq-vae", levels=2, codes=[4, 2], seed=seed, rq_vae=network)).fit(shown(), None, texts)


def purity(codes: np.ndarray, label: np.ndarray) -> float:
    """Share of the items that have the most frequent label of their tuple of codes."""
    place = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
    return sum(np.bincount(label[place == own]).max() for own in range(place.max() + 1)) / len(label)


@pytest.fixture(scope="module")
def told() -> RQVAE:
    return fit(words=3.0)


def test_codes_separate_what_the_words_separate(told):
    plain, codes = fit().encode(shown()), told.encode(shown())
    assert purity(plain, SIZE) > 0.9, "what the vectors show most"
    assert purity(plain, COLOUR) < 0.6
    assert purity(codes, COLOUR) > 0.95, "what the texts say"
    assert purity(codes, SIZE) < 0.6
    assert purity(codes[:, :1], SHAPE) > 0.95


def test_the_decoder_names_the_planted_words_of_codes(told):
    codes = told.encode(shown())
    for row, found in enumerate(told.words_of(codes, 2)):
        assert {each.word for each in found} == set(SAID[row].split())
        assert all(each.probability == pytest.approx(0.5, abs=0.15) for each in found)
    # the first code alone tells the shape, and not the colour
    firsts = told.words_of(codes[:, :1], 1)
    assert [[each.word for each in found] for found in firsts] == [[SHAPES[shape]] for shape in SHAPE]


def test_the_perplexity_counts_the_words_left_to_choose_from(told):
    """By frequency, a word is of 4 shapes or of 2 colours: 2 sqrt(4 x 2); by all codes, it is one of two."""
    by_frequency, by_shape, by_both = told.word_perplexity
    assert by_frequency == pytest.approx(2 * math.sqrt(8), rel=1e-4)
    assert by_shape == pytest.approx(2 * math.sqrt(2), rel=0.1)
    assert by_both == pytest.approx(2, rel=0.1)
    assert fit().word_perplexity is None


def test_words_come_back_from_the_state_and_depend_on_the_seed_alone(told):
    codes = np.array(list(itertools.product(range(4), range(2))))
    again = RQVAE.from_state(told.config(), told.tensors())
    assert again.words_of(codes, 3) == told.words_of(codes, 3)
    assert fit(words=3.0).words_of(codes, 3) == told.words_of(codes, 3)
    assert fit(words=3.0, seed=1).words_of(codes, 3) != told.words_of(codes, 3)


def test_texts_are_needed_but_not_of_every_item():
    with pytest.raises(UserError, match=r"loss\.words needs the items' texts, but fit was given none; .* weight to 0"):
        fit(None, words=1.0)
    some = fit([text if row % 3 else "" for row, text in enumerate(SAID)], words=3.0)
    assert purity(some.encode(shown()), COLOUR) > 0.95


def test_who_has_no_decoder_has_no_words():
    assert fit().words_of(np.array([[0, 0]]), 3) is None


def test_codes_outside_the_codebooks_have_no_words(told):
    with pytest.raises(ValueError, match="outside"):
        told.words_of(np.array([[0, 2]]), 3)


def test_the_probabilities_of_all_words_are_a_distribution(told):
    sums = told.model.sum_of_codes(torch.tensor([[1, 1]]))
    assert told.model.words(sums).exp().sum().item() == pytest.approx(1, abs=SUMS)
