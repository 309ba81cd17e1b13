"""As COBRA ranks (arXiv 2503.02453): beams over first codes, then dense retrieval inside each, from the hidden state
that has read the code; scores by its BeamFusion."""

from collections.abc import Sequence

import numpy as np
import torch

from llmrec.decode.config import DecodeConfig, RankingName
from llmrec.decode.filters import Filter, Restriction
from llmrec.decode.rankings.base import ItemFacts, RankingMethod, allowed, as_array, top
from llmrec.decode.search import BeamSearch, Offsets, Opened, Ranking
from llmrec.errors import UserError
from llmrec.vocab.trie import ranges

TAU = 0.9
"""How much a beam's log-probability counts: COBRA's."""
PSI = 16.0
"""How much a cosine counts: COBRA's."""


class CascadeRanking(RankingMethod):
    """log softmax(tau * beam) + log softmax(psi * cosine), the latter among the trained items of the beam's code."""

    name: RankingName = "cascade"

    def __init__(self, search: BeamSearch, facts: ItemFacts, config: DecodeConfig) -> None:
        super().__init__(search, facts, config)
        if search.trie.levels == 1:
            raise UserError(
                "--decode.ranking cascade goes on from an item's first code, and here it is the only one; choose beam, "
                "dense, liger or fusion."
            )

    def _rank(self, opened: Opened, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None) -> Ranking:
        trie, dense = self.tree.trie, self.dense
        restriction = None if filters is None else Restriction(trie, filters)
        beams, hidden = self.tree.prefixes(opened, 1, min(self.config.beams, len(trie.node_codes[0])), restriction)
        nodes, width = beams.nodes.flatten(), beams.nodes.shape[1]
        # Clamped, as a beam that found no code, -1, has no items.
        rows, places = ranges(trie.firsts[0][nodes.clamp(min=0)].long(), trie.firsts[0][nodes + 1].long())
        items = trie.order[places].long()
        queries = dense.head.queries(hidden.to(dense.vectors.device, dense.vectors.dtype)).flatten(0, 1)
        similar = PSI * (queries[rows] * dense.vectors[items]).sum(1)
        new = torch.from_numpy(self.facts.new).to(items.device)[items]
        known = _logsumexp(similar[~new], rows[~new], len(nodes))
        # Of trained items alone, where there are any, so that new ones change nobody's score.
        total = torch.where(torch.isneginf(known), _logsumexp(similar, rows, len(nodes)), known)
        inside = similar - total[rows]
        whole = torch.full((len(beams.scores), trie.items), -torch.inf, device=similar.device)
        whole[rows // width, items] = (TAU * beams.scores).log_softmax(1).flatten()[rows] + inside
        scores = as_array(whole)
        if offsets is not None:
            scores = scores + offsets.items
        return top(np.where(allowed(filters, *scores.shape), scores, -np.inf), k)


def _logsumexp(values: torch.Tensor, groups: torch.Tensor, n: int) -> torch.Tensor:
    """Of the values [T] of each of n groups (int64 [T]): [n], -inf for an empty group."""
    most = torch.full((n,), -torch.inf, device=values.device).scatter_reduce(0, groups, values, "amax")
    sums = torch.zeros(n, device=values.device).scatter_add(0, groups, (values - most[groups]).exp())
    return torch.where(sums > 0, most + sums.log(), -torch.inf)
