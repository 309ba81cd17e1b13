"""SpecGR (arXiv 2410.02939): a drafter that knows new items proposes, the generative model verifies, and drafts again
inside the prefixes of its own beams until enough are accepted. The drafter here is the model's dense head."""

from collections.abc import Sequence

import numpy as np

from llmrec.decode.config import DecodeConfig, RankingName
from llmrec.decode.filters import Filter
from llmrec.decode.rankings.base import ItemFacts, RankingMethod, allowed, item_nodes, top
from llmrec.decode.search import BeamSearch, Offsets, Opened, Ranking

DRAFT = 50
"""Items of one draft."""
BELOW = 100.0
"""What puts the beams that fill up a list below all accepted items."""


class SpecGRRanking(RankingMethod):
    """Accepted drafts by their mean log-probability per code, then, to fill up, the beams.

    Of a new item only the codes that tell content are verified, as a dedup code tells nothing of it.
    """

    name: RankingName = "specgr"

    def __init__(self, search: BeamSearch, facts: ItemFacts, config: DecodeConfig) -> None:
        super().__init__(search, facts, config)
        self._nodes = [item_nodes(search.trie, length) for length in range(1, facts.content_levels + 1)]

    def _rank(self, opened: Opened, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None) -> Ranking:
        bonus = 0.0 if offsets is None else offsets.items
        drafts = self.dense_scores(opened) + bonus
        drafts = np.where(allowed(filters, *drafts.shape), drafts, -np.inf)
        beams = self.search.rank(opened, max(k, self.config.beams), filters, offsets=offsets)
        rows, places = np.nonzero(beams.items >= 0)
        scores = np.full(drafts.shape, -np.inf)
        scores[rows, beams.items[rows, places]] = beams.scores[rows, places].astype(np.float64) - BELOW
        accepted = np.zeros(len(drafts), np.int64)
        for length in range(self.facts.content_levels):
            inside = drafts if length == 0 else np.where(self._under(beams.items, length), drafts, -np.inf)
            proposed = top(inside, DRAFT).items
            proposed[accepted >= k] = -1
            row, place = np.nonzero(proposed >= 0)
            if not len(row):
                break
            item = proposed[row, place]
            verified = self._verified(opened, proposed)[row, place]
            good = verified > self.config.specgr_threshold
            scores[row[good], item[good]] = (verified + np.broadcast_to(bonus, len(self.facts.new))[item])[good]
            accepted += np.bincount(row[good], minlength=len(drafts))
            drafts[row, item] = -np.inf  # none is drafted twice
        return top(scores, k)

    def _verified(self, opened: Opened, items: np.ndarray) -> np.ndarray:
        """Mean log-probability per code of items int64 [B, M] (-1: none), float32 [B, M]."""
        codes = self.tree.code_scores(opened, items)
        content = codes[..., : self.facts.content_levels].mean(axis=2)
        return np.where(self.facts.new[items], content, codes.mean(axis=2))

    def _under(self, beams: np.ndarray, length: int) -> np.ndarray:
        """bool [B, N]: items that begin, for so many codes, as one of the beams (items int64 [B, K], -1: none) does."""
        nodes = self._nodes[length - 1]
        return np.stack([np.isin(nodes, nodes[row[row >= 0]]) for row in beams])
