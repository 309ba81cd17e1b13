"""Text retrieval that plain-words queries to a language model have to stand beside: by words, by vectors, and fused.

Everything that retrieves scores the whole catalogue; -inf marks an item that it does not return.
"""

from collections.abc import Sequence
from typing import Protocol

import bm25s
import numpy as np
from scipy.stats import rankdata
from sklearn.preprocessing import normalize

from llmrec.embed import Embeddings

RRF_K = 60
"""What is added to every rank, as in the paper: it softens the lead of the first few."""


class Retriever(Protocol):
    """Answers queries in plain words."""

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Scores of all items for each of B queries, float [B, N], higher is better, -inf for what is not returned."""


class BM25:
    """Okapi BM25 (Robertson & Zaragoza 2009) in Lucene's form with bm25s's defaults (Lù, arXiv 2407.03618).

    Args:
        texts: of the N items.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._index = bm25s.BM25()
        self._index.index(_words(texts), show_progress=False)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Float32 [B, N]; an item that shares no word with the query is not returned."""
        words = _words(queries)
        scores = np.stack([self._index.get_scores_from_ids(self._index.get_tokens_ids(query)) for query in words])
        return np.where(scores > 0, scores, -np.inf)


class Dense:
    """Cosine of the query's vector and the items', all of one encoder.

    Args:
        embeddings: of the N items, with the encoder that made them.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        self._encoder = embeddings.encoder
        self._items = normalize(embeddings.vectors)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Float32 [B, N].

        Raises:
            UserError: the encoder can't be loaded.
        """
        return np.asarray(normalize(self._encoder.encode(queries)) @ self._items.T)


def reciprocal_rank_fusion(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Several retrievers' scores of the same queries as one: the sum of 1 / (60 + rank) (Cormack et al., SIGIR 2009).

    Tied items all get the last of their ranks, so that no order of the catalogue helps; what a retriever does not
    return gets nothing from it.

    Args:
        scores: per retriever, float [B, N].

    Returns:
        float64 [B, N]; -inf for an item that none returns.
    """
    shares = [
        np.where(np.isneginf(one), 0.0, 1 / (RRF_K + rankdata(-one.astype(np.float64), method="max", axis=1)))
        for one in scores
    ]
    # Sorted, so that the same ranks by other retrievers sum to the very same number and tie.
    fused = np.sort(shares, axis=0).sum(axis=0)
    return np.where(fused > 0, fused, -np.inf)


def _words(texts: Sequence[str]) -> list[list[str]]:
    return list(bm25s.tokenize(list(texts), return_ids=False, show_progress=False))
