"""Rankings of a model with two streams (EAGER, arXiv 2406.14017): codes of the items' texts, and codes of behaviour.

Each stream finds its best items by a beam search of its own. The confidence of a stream in an item is the
log-probability of the item's codes, and an item's score is the larger one. With scoring catalogue both are
distributions over items, so that neither the number of levels nor that of codes counts.
"""

from collections.abc import Sequence

import numpy as np

from llmrec.decode.behaviour import BehaviourStream
from llmrec.decode.config import DecodeConfig, RankingName
from llmrec.decode.filters import Filter
from llmrec.decode.rankings.base import ItemFacts, RankingMethod, candidates, top
from llmrec.decode.search import BeamSearch, Offsets, PrefilledBatch, Ranking
from llmrec.errors import UserError


def merged(first: Ranking, second: Ranking, k: int) -> Ranking:
    """The k best items of two rankings; an item of both has the larger of its two scores.

    If each ranking has the k best items of a score, the result has the k best items by the larger score.
    """
    items = candidates(first.items, second.items)
    scores = np.full(items.shape, -np.inf, np.float32)
    for ranking in (first, second):
        same = (items[:, :, None] == ranking.items[:, None, :]) & (items >= 0)[:, :, None]
        own = np.where(same, ranking.scores[:, None, :], -np.inf).max(axis=2, initial=-np.inf)
        scores = np.maximum(scores, own)
    best = top(scores, k, items)
    counts = [getattr(first, name) + getattr(second, name) for name in ("beams", "invalid", "invalid_first")]
    return Ranking(best.items, best.scores, max(first.width, second.width), *counts)


class StreamsRanking(RankingMethod):
    """The better of an item's two log-probabilities. The texts alone rank requests in words, and cold items."""

    name: RankingName = "streams"

    def __init__(self, search: BeamSearch, facts: ItemFacts, config: DecodeConfig) -> None:
        super().__init__(search, facts, config)
        _ = self.stream  # its error comes now, not at the first request

    @property
    def stream(self) -> BehaviourStream:
        """The second stream.

        Raises:
            UserError: the items have no codes of behaviour.
        """
        if self.facts.behaviour is None:
            raise UserError(
                f"--decode.ranking {self.name}: this bundle has no codes of behaviour; train it with "
                "--tokenize.behaviour 64, or choose beam."
            )
        return self.facts.behaviour

    def _rank(
        self, prefilled: PrefilledBatch, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None
    ) -> Ranking:
        texts = self.search.rank(prefilled, k, filters, offsets=offsets)
        return merged(texts, self.stream.rank(self.stream.read(prefilled.prompts), k, filters, offsets), k)


class BehaviourRanking(StreamsRanking):
    """The log-probability of the codes of behaviour, to measure that stream alone.

    Where it knows nothing, after words or a history without such codes, the texts rank.
    """

    name: RankingName = "behaviour"

    def _rank(
        self, prefilled: PrefilledBatch, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None
    ) -> Ranking:
        reading = self.stream.read(prefilled.prompts)
        ranking = self.stream.rank(reading, k, filters, offsets)
        others = np.setdiff1d(np.arange(reading.size), reading.rows)
        if len(others):
            texts = self.search.rank(prefilled, k, filters, offsets=offsets)
            ranking.items[others], ranking.scores[others] = texts.items[others], texts.scores[others]
        return ranking
