"""Published ways to combine two rankings, so that the list also has cold items.

- quota (TIGER, arXiv 2305.05065): cold items have a share of each prefix of the list.
- liger (LIGER, arXiv 2411.18814): dense retrieval ranks the items of the beams and all cold items.
- cascade (COBRA, arXiv 2503.02453): dense retrieval ranks the items below the first code of each beam.
- specgr (SpecGR, arXiv 2410.02939): dense retrieval proposes items (drafts), and the model verifies their codes.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from llmrec.decode.config import DecodeConfig, RankingName
from llmrec.decode.filters import Filter, Restriction
from llmrec.decode.rankings.base import ItemFacts, RankingMethod, allowed, as_array, item_nodes, top
from llmrec.decode.search import BeamSearch, Offsets, PrefilledBatch, Ranking
from llmrec.errors import UserError
from llmrec.index.trie import ranges


def interleave(first: np.ndarray, second: np.ndarray, epsilon: float, k: int) -> np.ndarray:
    """Merge two rankings into one of length k; its first s slots have floor(epsilon s) items of the second.

    Slot s, counted from 1, is for the second ranking if floor(epsilon s) > floor(epsilon (s - 1)). If one ranking has
    no more items, the other one fills the remaining slots.

    Args:
        first: int [B, K1], best first; -1 is padding at the end.
        second: int [B, K2], the same; no item is in both rankings.
        epsilon: share of the slots that are for the second ranking, from 0 to 1.
        k: number of slots.

    Returns:
        int64 [B, k]; -1 if neither ranking has more items.

    Raises:
        ValueError: `epsilon` is not between 0 and 1, or the numbers of rows differ.
    """
    if not 0 <= epsilon <= 1 or len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} rows to interleave with a share of {epsilon}")
    slots = np.arange(k + 1)
    firsts, seconds = ((ranking >= 0).sum(axis=1)[:, None] for ranking in (first, second))
    # Items of the second ranking in the first s slots. In floating point, .29 * 100 is below 29; so 1e-9 is added.
    taken = np.minimum(np.maximum(np.floor(epsilon * slots + 1e-9).astype(np.int64), slots - firsts), seconds)
    theirs = taken[:, 1:] > taken[:, :-1]
    return np.where(theirs, _at(second, taken[:, 1:] - 1), _at(first, slots[1:] - taken[:, 1:] - 1))


def _at(ranking: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The items at `places` [B, k] of the ranking [B, K]; -1 beyond its end."""
    padded = np.pad(ranking.astype(np.int64), ((0, 0), (0, 1)), constant_values=-1)
    return np.take_along_axis(padded, np.clip(places, 0, ranking.shape[1]), axis=1)


class QuotaRanking(RankingMethod):
    """Beam search over the warm items; a share of the slots is for cold items that share a prefix with a beam.

    The cold items are in the order of these beams. The score of an item is minus its place in the list, because the
    scores of warm and cold items are not comparable.
    """

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
        for item in np.flatnonzero(facts.is_cold & (self._node >= 0)).tolist():
            self._new[int(self._node[item])].append(item)

    def _rank(
        self, prefilled: PrefilledBatch, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None
    ) -> Ranking:
        mask, trained = allowed(filters, len(prefilled.prompts), len(self.facts.is_cold)), ~self.facts.is_cold
        both = (mask & trained).any(axis=1)
        # If a filter allows only cold items, the beams search all warm items, to find prefixes that lead to cold ones.
        warm = [Filter.of_mask(row & trained if some else trained) for row, some in zip(mask, both, strict=True)]
        beams = self.search.rank(prefilled, max(k, self.config.beams), warm, offsets=offsets)
        found = np.full((len(mask), k), -1, dtype=np.int64)
        for row, items in enumerate(beams.items):
            nodes = dict.fromkeys(self._node[items[items >= 0]].tolist())
            under = [item for node in nodes for item in self._new[node] if mask[row, item]][:k]
            found[row, : len(under)] = under
        items = interleave(np.where(both[:, None], beams.items, -1), found, self.config.quota, k)
        places = np.broadcast_to(-np.arange(1, k + 1, dtype=np.float32), items.shape)
        scores = np.where(items >= 0, places, -np.inf).astype(np.float32)
        return Ranking(items, scores, beams.width, beams.beams, beams.invalid, beams.invalid_first)


class LigerRanking(RankingMethod):
    """The dense head ranks the items of the beams and all cold items.

    With as many beams as items, this is dense retrieval over the whole catalogue.
    """

    name: RankingName = "liger"

    def _rank(
        self, prefilled: PrefilledBatch, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None
    ) -> Ranking:
        scores = self.dense_scores(prefilled)
        if offsets is not None:
            scores = scores + offsets.items
        beams = self.search.rank(prefilled, max(k, self.config.beams), filters, offsets=offsets)
        candidate = np.tile(self.facts.is_cold, (len(scores), 1))
        row, place = np.nonzero(beams.items >= 0)
        candidate[row, beams.items[row, place]] = True
        return top(np.where(candidate & allowed(filters, *scores.shape), scores, -np.inf), k)


TAU = 0.9
"""Factor of a beam's log-probability, as in COBRA."""


PSI = 16.0
"""Factor of a cosine, as in COBRA."""


class CascadeRanking(RankingMethod):
    """Beams choose first codes, and the dense head ranks the items below each code.

    score = log softmax(tau * log-probability of the code) + log softmax(psi * cosine)

    The first softmax is over the beams, the second over the warm items below the code.
    """

    name: RankingName = "cascade"

    def __init__(self, search: BeamSearch, facts: ItemFacts, config: DecodeConfig) -> None:
        super().__init__(search, facts, config)
        if search.trie.levels == 1:
            raise UserError(
                "--decode.ranking cascade goes on from an item's first code, and here it is the only one; choose beam, "
                "dense, liger or fusion."
            )

    def _rank(
        self, prefilled: PrefilledBatch, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None
    ) -> Ranking:
        trie, dense = self.tree.trie, self.dense
        restriction = None if filters is None else Restriction(trie, filters)
        beams, hidden = self.tree.prefixes(prefilled, 1, min(self.config.beams, len(trie.node_codes[0])), restriction)
        nodes, width = beams.nodes.flatten(), beams.nodes.shape[1]
        # A beam without a code has node -1; clamping its start to node 0 makes its range of items empty.
        rows, places = ranges(trie.firsts[0][nodes.clamp(min=0)].long(), trie.firsts[0][nodes + 1].long())
        items = trie.order[places].long()
        queries = dense.head.queries(hidden.to(dense.vectors.device, dense.vectors.dtype)).flatten(0, 1)
        similar = PSI * (queries[rows] * dense.vectors[items]).sum(1)
        is_cold = torch.from_numpy(self.facts.is_cold).to(items.device)[items]
        known = _logsumexp(similar[~is_cold], rows[~is_cold], len(nodes))
        # The sum is over the warm items, if the code has any, so that cold items do not change the scores of others.
        total = torch.where(torch.isneginf(known), _logsumexp(similar, rows, len(nodes)), known)
        inside = similar - total[rows]
        whole = torch.full((len(beams.scores), trie.n_items), -torch.inf, device=similar.device)
        whole[rows // width, items] = (TAU * beams.scores).log_softmax(1).flatten()[rows] + inside
        scores = as_array(whole)
        if offsets is not None:
            scores = scores + offsets.items
        return top(np.where(allowed(filters, *scores.shape), scores, -np.inf), k)


def _logsumexp(values: torch.Tensor, groups: torch.Tensor, n: int) -> torch.Tensor:
    """logsumexp of the values [T] in each of n groups (`groups`, int64 [T]): float [n]; -inf for an empty group."""
    most = torch.full((n,), -torch.inf, device=values.device).scatter_reduce(0, groups, values, "amax")
    sums = torch.zeros(n, device=values.device).scatter_add(0, groups, (values - most[groups]).exp())
    return torch.where(sums > 0, most + sums.log(), -torch.inf)


DRAFT = 50
"""Number of items of one draft."""


BELOW = 100.0
"""Subtracted from the scores of the beams that fill up the list, so that they rank below all accepted items."""


class SpecGRRanking(RankingMethod):
    """Ranks the accepted drafts by their mean log-probability per code, and fills up the list with the beams.

    The dense head drafts items. The first draft is from all items, each later one from the items that share one more
    first code with a beam. The model accepts an item if its mean log-probability per code is above a threshold. For a
    cold item, only the content codes count; the dedup code says nothing about its content.
    """

    name: RankingName = "specgr"

    def __init__(self, search: BeamSearch, facts: ItemFacts, config: DecodeConfig) -> None:
        super().__init__(search, facts, config)
        self._nodes = [item_nodes(search.trie, length) for length in range(1, facts.content_levels + 1)]

    def _rank(
        self, prefilled: PrefilledBatch, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None
    ) -> Ranking:
        bonus = 0.0 if offsets is None else offsets.items
        drafts = self.dense_scores(prefilled) + bonus
        drafts = np.where(allowed(filters, *drafts.shape), drafts, -np.inf)
        beams = self.search.rank(prefilled, max(k, self.config.beams), filters, offsets=offsets)
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
            verified = self._verified(prefilled, proposed)[row, place]
            good = verified > self.config.specgr_threshold
            scores[row[good], item[good]] = (verified + np.broadcast_to(bonus, len(self.facts.is_cold))[item])[good]
            accepted += np.bincount(row[good], minlength=len(drafts))
            drafts[row, item] = -np.inf  # no item is drafted twice
        return top(scores, k)

    def _verified(self, prefilled: PrefilledBatch, items: np.ndarray) -> np.ndarray:
        """Mean log-probability per code, float32 [B, M], of the items int64 [B, M]; -1 is padding."""
        codes = self.tree.code_scores(prefilled, items)
        content = codes[..., : self.facts.content_levels].mean(axis=2)
        return np.where(self.facts.is_cold[items], content, codes.mean(axis=2))

    def _under(self, beams: np.ndarray, length: int) -> np.ndarray:
        """bool [B, N]: items that share the first `length` codes with a beam (`beams`: int64 [B, K], -1 for none)."""
        nodes = self._nodes[length - 1]
        return np.stack([np.isin(nodes, nodes[row[row >= 0]]) for row in beams])
