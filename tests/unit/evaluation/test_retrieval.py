"""Text retrieval on a catalogue where the right item is known, and rank fusion by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from llmrec.data import Catalog
from llmrec.embed import EmbedConfig, Embeddings, embed
from llmrec.embed.encoder import Encoder
from llmrec.evaluation.text_queries import Dense, reciprocal_rank_fusion
from llmrec.index.text import BM25

TEXTS = ["hand soap with olive oil", "olive oil", "desk lamp with a warm light", "lamp oil", ""]
INF = np.inf


def test_bm25_finds_words_and_returns_nothing_without_them() -> None:
    scores = BM25(TEXTS).scores(["Warm LAMP!", "olive oil", "umbrella", "", "the"])
    assert scores.shape == (5, 5)
    assert np.isfinite(scores[0]).tolist() == [False, False, True, True, False]
    assert scores[0].argmax() == 2
    assert scores[1].argmax() == 1, "the shorter of two texts with both words"
    assert np.isneginf(scores[2:]).all()


def test_bm25_is_the_formula() -> None:
    """Lucene's form for one word: idf * tf / (tf + k1 (1 - b + b length / mean length)), k1 1.5 and b 0.75."""
    texts = ["soap soap gel", "gel balm", "balm"]
    idf = np.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    expected = idf * 2 / (2 + 1.5 * (1 - 0.75 + 0.75 * 3 / 2))
    assert BM25(texts).scores(["soap"])[0, 0] == pytest.approx(expected)


class Axes(Encoder):
    """Embeds a text by how often it says left and right; not of length 1."""

    def encode(self, texts):
        return np.array([[text.count("left"), text.count("right")] for text in texts], np.float32)


def test_dense_is_the_cosine_of_the_same_encoder() -> None:
    encoder = Axes(EmbedConfig())
    items = ["left", "left left left right", "right right", "neither"]
    scores = Dense(Embeddings(["a", "b", "c", "d"], encoder.encode(items), encoder)).scores(["left", "right left", "?"])
    half = np.sqrt(0.5)
    assert scores[0] == pytest.approx([1, 3 / np.sqrt(10), 0, 0])
    assert scores[1] == pytest.approx([half, 4 / np.sqrt(20), half, 0])
    assert scores[2].tolist() == [0, 0, 0, 0]


def test_dense_finds_an_item_by_its_own_words(tiny_catalog: Catalog) -> None:
    embeddings = embed(tiny_catalog, EmbedConfig(encoder="tfidf-svd", dim=16, template="{title}"))
    scores = Dense(embeddings).scores(["borea shampoo", "cirrus lip gloss"])
    titles = [tiny_catalog.frame["title"][int(row)] for row in scores.argmax(axis=1)]
    assert titles == ["Borea shampoo 5", "Cirrus lip gloss 14"]


def test_fusion_by_hand() -> None:
    first = np.array([[9.0, 5.0, 1.0, -INF, -INF]])
    second = np.array([[2.0, 7.0, -INF, 7.0, -INF]])
    fused = reciprocal_rank_fusion([first, second])
    # 7 stands twice: both items are the second of their list.
    assert fused[0, :4] == pytest.approx([1 / 61 + 1 / 63, 1 / 62 + 1 / 62, 1 / 63, 1 / 62])
    assert fused[0, 4] == -INF


def test_the_same_ranks_tie_whoever_gave_them() -> None:
    lists = np.array([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [2.0, 1.0, 3.0]])
    fused = reciprocal_rank_fusion([one[None] for one in lists])
    assert len(set(fused[0].tolist())) == 1


SCORES = arrays.arrays(
    np.float32, st.tuples(st.just(2), st.integers(1, 7)), elements=st.sampled_from([-INF, -1.5, 0.0, 2.0, 3.0])
)


@settings(max_examples=60, deadline=None)
@given(SCORES)
def test_fusion_is_the_sum_over_brute_force_ranks(scores: np.ndarray) -> None:
    fused = reciprocal_rank_fusion([scores, -scores[:, ::-1]])
    for query in range(len(scores)):
        for item in range(scores.shape[1]):
            parts = [one[query] for one in (scores, -scores[:, ::-1]) if one[query, item] > -INF]
            ranks = [sum(other >= one[item] for other in one) for one in parts]
            expected = sum(1 / (60 + rank) for rank in ranks) if ranks else -INF
            assert fused[query, item] == pytest.approx(expected)
