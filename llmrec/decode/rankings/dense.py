"""Dense retrieval from the model's hidden state against the items' vectors, without codes (LIGER's dense half,
arXiv 2411.18814)."""

from collections.abc import Sequence

import numpy as np

from llmrec.decode.config import RankingName
from llmrec.decode.filters import Filter
from llmrec.decode.rankings.base import RankingMethod, allowed, top
from llmrec.decode.search import Offsets, Opened, Ranking


class DenseRanking(RankingMethod):
    """Cosine over a temperature, as log-probability among all items."""

    name: RankingName = "dense"

    def _rank(self, opened: Opened, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None) -> Ranking:
        scores = self.dense_scores(opened)
        if offsets is not None:
            scores = scores + offsets.items
        return top(np.where(allowed(filters, *scores.shape), scores, -np.inf), k)
