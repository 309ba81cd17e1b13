"""TIGER's way with new items (arXiv 2305.05065): a share of every list is for new items that begin as a beam does."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from llmrec.decode.config import DecodeConfig, RankingName
from llmrec.decode.filters import Filter
from llmrec.decode.interleave import interleave
from llmrec.decode.rankings.base import ItemFacts, RankingMethod, allowed, item_nodes
from llmrec.decode.search import BeamSearch, Offsets, Opened, Ranking
from llmrec.errors import UserError


class QuotaRanking(RankingMethod):
    """Beams over the items with training events; new items take their slots in the order of the beams they share a
    prefix with. A list's scores are minus the places, since those of its two parts do not compare."""

    name: RankingName = "quota"

    def __init__(self, search: BeamSearch, facts: ItemFacts, config: DecodeConfig) -> None:
        super().__init__(search, facts, config)
        self.length = config.quota_prefix or facts.content_levels
        if self.length > search.trie.levels:
            raise UserError(
                f"--decode.quota_prefix {self.length}: semantic IDs have {search.trie.levels} codes; expected at most "
                "as many."
            )
        self._node = item_nodes(search.trie, self.length)
        self._new: dict[int, list[int]] = defaultdict(list)
        for item in np.flatnonzero(facts.new & (self._node >= 0)).tolist():
            self._new[int(self._node[item])].append(item)

    def _rank(self, opened: Opened, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None) -> Ranking:
        mask, trained = allowed(filters, len(opened.prompts), len(self.facts.new)), ~self.facts.new
        both = (mask & trained).any(axis=1)
        # Where only new items may come out, others still lead to them.
        warm = [Filter.of_mask(row & trained if some else trained) for row, some in zip(mask, both, strict=True)]
        beams = self.search.rank(opened, max(k, self.config.beams), warm, offsets=offsets)
        found = np.full((len(mask), k), -1, dtype=np.int64)
        for row, items in enumerate(beams.items):
            nodes = dict.fromkeys(self._node[items[items >= 0]].tolist())
            under = [item for node in nodes for item in self._new[node] if mask[row, item]][:k]
            found[row, : len(under)] = under
        items = interleave(np.where(both[:, None], beams.items, -1), found, self.config.quota, k)
        places = np.broadcast_to(-np.arange(1, k + 1, dtype=np.float32), items.shape)
        scores = np.where(items >= 0, places, -np.inf).astype(np.float32)
        return Ranking(items, scores, beams.width, beams.beams, beams.invalid, beams.invalid_first)
