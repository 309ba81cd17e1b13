"""The ranking of the experts alone, which asks the language model only where they know nothing."""

from collections.abc import Sequence
from typing import cast

import numpy as np

from llmrec.collaborative.fused import FusedExperts
from llmrec.decode.config import DecodeConfig, RankingName
from llmrec.decode.filters import Filter
from llmrec.decode.rankings.base import BeamRanking, ItemFacts, allowed, top
from llmrec.decode.search import BeamSearch, Prompt, Ranking
from llmrec.errors import UserError


class ExpertsRanking(BeamRanking):
    """The experts rank after a history. They know nothing after words or an empty history: the beams rank then."""

    name: RankingName = "experts"

    def __init__(self, search: BeamSearch, facts: ItemFacts, config: DecodeConfig) -> None:
        super().__init__(search, facts, config)
        _ = self.experts  # its error comes now, not at the first request

    @property
    def experts(self) -> FusedExperts:
        """What ranks.

        Raises:
            UserError: the bundle has no experts.
        """
        if self.facts.experts is None:
            raise UserError(
                "--decode.ranking experts: this bundle has no experts; name them in --experts.models and run again, or "
                "choose beam."
            )
        return self.facts.experts

    def rank(
        self,
        prompts: Sequence[Sequence[int]],
        k: int,
        filters: Sequence[Filter] | None = None,
        offsets: np.ndarray | None = None,
    ) -> Ranking:
        """As `RankingMethod.rank`."""
        known = [prompt.query is None and len(prompt.history) > 0 for prompt in cast(Sequence[Prompt], prompts)]
        parts = []
        for by_experts in (True, False):
            chosen = [row for row, one in enumerate(known) if one == by_experts]
            size = self.config.batch_size if by_experts else max(1, len(chosen))
            for start in range(0, len(chosen), size):
                rows = chosen[start : start + size]
                own = None if filters is None else [filters[row] for row in rows]
                asked = [prompts[row] for row in rows]
                rank = self._best if by_experts else super().rank
                parts.append((rows, rank(asked, k, own, offsets)))
        return Ranking.joined(len(prompts), k, parts)

    def _best(
        self, prompts: Sequence[Sequence[int]], k: int, filters: Sequence[Filter] | None, offsets: np.ndarray | None
    ) -> Ranking:
        """The ranking of one batch by the experts."""
        scores = self.experts.scores([prompt.history for prompt in cast(Sequence[Prompt], prompts)])
        if offsets is not None:
            scores = scores + offsets.astype(np.float32)
        return top(np.where(allowed(filters, *scores.shape), scores, -np.inf), k)
