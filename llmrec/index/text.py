"""Items by their texts, for requests in plain words: BM25, and cosines of one encoder's vectors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import bm25s
import numpy as np

Encode = Callable[[Sequence[str]], np.ndarray]
"""The vectors of n texts, float32 [n, D]."""


class BM25:
    """Okapi BM25 (Robertson & Zaragoza 2009) in Lucene's form with bm25s's defaults (Lù, arXiv 2407.03618).

    Args:
        texts: texts of the N items.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._index = bm25s.BM25()
        self._index.index(_words(texts), show_progress=False)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Float32 [B, N]; -inf for an item that shares no word with the query."""
        words = _words(queries)
        scores = np.stack([self._index.get_scores_from_ids(self._index.get_tokens_ids(query)) for query in words])
        return np.where(scores > 0, scores, -np.inf)


def _words(texts: Sequence[str]) -> list[list[str]]:
    return list(bm25s.tokenize(list(texts), return_ids=False, show_progress=False))


@dataclass(frozen=True)
class TextIndex:
    """What finds the N items of a catalogue by words.

    Attributes:
        texts: gives the items' texts, in catalogue order.
        encode: makes vectors of queries, in the space of the items' text vectors; None if there is no encoder that may
            be loaded.
    """

    texts: Callable[[], Sequence[str]]
    encode: Encode | None

    @cached_property
    def bm25(self) -> BM25:
        """The index of the texts; built at its first use."""
        return BM25(self.texts())
