"""LIGER (arXiv 2411.18814): the items of the beams and all new items, ranked by the dense score."""

from collections.abc import Sequence

import numpy as np

from llmrec.decode.config import RankingName
from llmrec.decode.filters import Filter
from llmrec.decode.rankings.base import RankingMethod, allowed, top
from llmrec.decode.search import Offsets, Opened, Ranking


class LigerRanking(RankingMethod):
    """With as many beams as items it is dense retrieval; new items are always candidates."""

    name: RankingName = "liger"

    def _rank(self, opened: Opened, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None) -> Ranking:
        scores = self.dense_scores(opened)
        if offsets is not None:
            scores = scores + offsets.items
        beams = self.search.rank(opened, max(k, self.config.beams), filters, offsets=offsets)
        candidate = np.tile(self.facts.new, (len(scores), 1))
        row, place = np.nonzero(beams.items >= 0)
        candidate[row, beams.items[row, place]] = True
        return top(np.where(candidate & allowed(filters, *scores.shape), scores, -np.inf), k)
