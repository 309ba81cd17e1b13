import numpy as np
import pytest
from tolerances import SUMS

from llmrec.embed import EmbedConfig, make_encoder
from llmrec.errors import UserError

TEXTS = ["red nail lacquer", "blue nail lacquer", "gentle kids shampoo", "strong kids shampoo", "5 € soap"]


def encoder(dim: int = 4, normalize: bool = True):
    return make_encoder(EmbedConfig("tfidf-svd", dim=dim, normalize=normalize))


def test_like_texts_lie_near():
    vectors = encoder(3).fit(TEXTS).encode(TEXTS)
    assert vectors.shape == (5, 3)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=SUMS)
    cosine = vectors @ vectors.T
    assert cosine[0, 1] > 0.5 > abs(cosine[0, 2])
    assert cosine[2, 3] > 0.5 > abs(cosine[2, 0])


def test_full_rank_keeps_every_inner_product():
    """With as many dimensions as texts the projection is an isometry: TF-IDF by hand gives the cosine."""
    vectors = encoder(5).fit(TEXTS).encode(TEXTS)
    idf = {"red": np.log(6 / 2) + 1, "nail": np.log(6 / 3) + 1}
    one, two = idf["red"] ** 2, idf["nail"] ** 2  # a term of one text, a term of two
    # texts 0 and 1 have 5 terms each and share nail, lacquer, "nail lacquer"
    assert vectors[0] @ vectors[1] == pytest.approx(3 * two / (3 * two + 2 * one), abs=SUMS)
    assert vectors[0] @ vectors[4] == pytest.approx(0, abs=SUMS)


def test_the_same_each_time():
    np.testing.assert_array_equal(encoder().fit(TEXTS).encode(TEXTS), encoder().fit(TEXTS).encode(TEXTS))


def test_unnormalised_lengths_differ():
    lengths = np.linalg.norm(encoder(2, normalize=False).fit(TEXTS).encode(TEXTS), axis=1)
    assert lengths.std() > 0.01


def test_unknown_words_give_the_zero_vector():
    assert not encoder().fit(TEXTS).encode(["zebra", ""]).any()


def test_saved_and_loaded(tmp_path):
    fitted = encoder().fit(TEXTS)
    fitted.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    queries = [*TEXTS, "a shampoo for kids"]
    np.testing.assert_array_equal(encoder().load(tmp_path).encode(queries), fitted.encode(queries))


def test_more_dimensions_than_the_texts_can_give():
    with pytest.raises(UserError, match=r"5 items with \d+ terms cannot give 6 dimensions; set embed\.dim to 5"):
        encoder(6).fit(TEXTS)


def test_no_words():
    with pytest.raises(UserError, match=r"hold no words; check embed\.template"):
        encoder().fit(["!!!", "?"])
