"""Beam search alone, as TIGER (arXiv 2305.05065) and LC-Rec (2311.09049) rank: what the model spells, it recommends."""

from collections.abc import Sequence

from llmrec.decode.config import RankingName
from llmrec.decode.filters import Filter
from llmrec.decode.rankings.base import RankingMethod
from llmrec.decode.search import Offsets, Opened, Ranking


class BeamRanking(RankingMethod):
    """Log-probability of the semantic ID."""

    name: RankingName = "beam"

    def _rank(self, opened: Opened, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None) -> Ranking:
        return self.search.rank(opened, k, filters, offsets=offsets)
