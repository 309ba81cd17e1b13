"""Beam search with one row per user.

The beams of a user are extra query positions under a tree attention mask. One step is one forward pass of B x K tokens.
The search neither copies nor reorders the key/value cache of the prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llmrec.decode.context import Body, Context, ItemHead
from llmrec.decode.encoded import open_context
from llmrec.decode.filters import Restriction
from llmrec.decode.search import BeamSearch, Offsets, PrefilledBatch, codes_of, require_numbers
from llmrec.index.trie import ItemTrie
from llmrec.model.tokens import ItemVocabulary


@dataclass
class Beams:
    """The beams of a batch after some levels.

    K is at most the width of the search; it is smaller where a level has fewer continuations, K_before x C.

    Attributes:
        scores: float32 [B, K], sums of log-probabilities, -inf for a beam that is not alive.
        nodes: int64 [B, K], each beam's node of the trie, -1 if its codes are no prefix of an item.
        codes: int64 [B, K], the last code of each beam (with constraint none: the last token).
        ancestors: int64 [B, K, depth], the slots of the beam's own tokens in the tree part of the cache. The beam
            attends to the prompt and to these.
        order: float32 [B, K], the numbers by which the beams were chosen, descending.
    """

    scores: torch.Tensor
    nodes: torch.Tensor
    codes: torch.Tensor
    ancestors: torch.Tensor
    order: torch.Tensor


class PrefilledTree(PrefilledBatch):
    """A batch of prompts in the key/value cache."""

    def __init__(self, prompts: list[Sequence[int]], context: Context) -> None:
        self.prompts = prompts
        self.context = context

    @property
    def hidden(self) -> torch.Tensor:
        return self.context.start()[:, 0]


class TreeSearch(BeamSearch):
    """Finds the same beams as `generate` (with scoring vocab), but does not copy the key/value cache per beam."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.body = Body(self.model, self.dtype)
        self.model = self.body.model
        self._set_codes(self.vocabulary)

    def _set_codes(self, vocabulary: ItemVocabulary) -> None:
        super()._set_codes(vocabulary)
        self.head = ItemHead(self.model, vocabulary, self.config.scoring, self.dtype)
        self.code_of_token = torch.from_numpy(vocabulary.code_of_token(len(self.head.weight))).to(self.device)

    def _set_items(self, trie: ItemTrie, is_cold: np.ndarray | None) -> None:
        super()._set_items(trie, is_cold)
        self._trained: list[torch.Tensor] | None = None  # per level, bool [nodes]: has a warm item below
        if self.is_cold is not None and self.is_cold.any():
            ordered = torch.from_numpy(~self.is_cold).to(self.device)[self.trie.order.long()]
            before = torch.cat([torch.zeros_like(ordered[:1], dtype=torch.int64), ordered.cumsum(0)])
            self._trained = [before[first[1:].long()] > before[first[:-1].long()] for first in self.trie.firsts]

    @torch.inference_mode()
    def prefill(self, prompts: list[Sequence[int]]) -> "PrefilledTree":
        room = self.config.beams * (self.trie.levels - 1)
        return PrefilledTree(prompts, open_context(self.body, prompts, self.pad_token_id, room))

    def _leaves(
        self, prefilled: PrefilledBatch, width: int, restriction: Restriction | None, offsets: Offsets | None
    ) -> tuple[np.ndarray, np.ndarray]:
        beams, _ = self.prefixes(prefilled, self.trie.levels, width, restriction, offsets)
        return beams.nodes.cpu().numpy(), beams.scores.cpu().numpy()

    @torch.inference_mode()
    def prefixes(
        self,
        prefilled: PrefilledBatch,
        length: int,
        width: int,
        restriction: Restriction | None = None,
        offsets: Offsets | None = None,
    ) -> tuple[Beams, torch.Tensor]:
        """Search for the best prefixes.

        Args:
            prefilled: B prompts.
            length: number of codes of each prefix, 1 to L.
            width: number of beams K at most.
            restriction: as in `BeamSearch.rank`, the allowed items; None: all.
            offsets: as in `BeamSearch.rank`.

        Returns:
            The beams, and their hidden states [B, K, H], zeros for beams that the model need not extend (`_open`). If
            length is L, the hidden states are those of the prefixes of L - 1 codes.
        """
        assert isinstance(prefilled, PrefilledTree), "what this search has opened"
        hidden = prefilled.context.start()
        size = len(hidden)
        start = torch.zeros((size, 1), dtype=torch.int64, device=self.device)
        none = torch.empty((size, 1, 0), dtype=torch.int64, device=self.device)
        beams = Beams(start.float(), start, start, none, start.float())
        for level in range(length):
            beams = self._advance(level, beams, hidden, width, restriction, offsets)
            if level + 1 < self.trie.levels:
                depth = torch.full_like(beams.codes, level)
                tokens = self._tokens(level, beams.codes)
                running = self._open(level, beams)
                hidden, beams.ancestors = prefilled.context.extend(tokens, depth, beams.ancestors, running)
        return beams, hidden

    @torch.inference_mode()
    def code_scores(self, prefilled: PrefilledBatch, items: np.ndarray) -> np.ndarray:
        """The log-probability of each code of the given items, given the prompt and the item's earlier codes.

        Args:
            prefilled: B prompts.
            items: int64 [B, M], rows of the catalogue; -1 for none.

        Returns:
            float32 [B, M, L]; 0 where there is no item.
        """
        assert isinstance(prefilled, PrefilledTree), "what this search has opened"
        if not (items >= 0).any():
            return np.zeros((*items.shape, self.trie.levels), np.float32)
        hidden = prefilled.context.start()
        wanted = torch.from_numpy(items).to(self.device)
        there = wanted >= 0
        paths = self.trie.paths(torch.where(there, wanted, self.trie.order[0].long()).flatten())
        nodes = [path.view_as(wanted) for path in paths]
        size = len(wanted)
        rows = torch.arange(size, device=self.device)[:, None]
        parents = torch.zeros((size, 1), dtype=torch.int64, device=self.device)
        ancestors = torch.empty((size, 1, 0), dtype=torch.int64, device=self.device)
        place = torch.zeros_like(wanted)  # column of `parents` that holds the item's prefix
        scores = torch.zeros((*wanted.shape, self.trie.levels), device=self.device)
        for level, column in enumerate(nodes):
            flat = self._continuations(level, hidden.flatten(0, 1), parents.flatten(), None)
            own = flat.view(size, parents.shape[1], -1)[rows, place, self.trie.codes(level, column)]
            require_numbers(own, level, self.trie.levels)
            scores[:, :, level] = torch.where(there, own, 0.0)
            if level + 1 == self.trie.levels:
                break
            parents, place, above = _distinct(torch.where(there, column, -1), place)
            ancestors = ancestors.gather(1, above[:, :, None].expand(-1, -1, level))
            running = parents >= 0
            if self.config.scoring == "catalogue":
                running &= ~self.trie.single_leaf(level, parents.clamp(min=0))
            tokens = self.head.tokens[level][self.trie.codes(level, parents.clamp(min=0))]
            hidden, ancestors = prefilled.context.extend(tokens, torch.full_like(parents, level), ancestors, running)
        return scores.cpu().numpy()

    def _advance(
        self,
        level: int,
        beams: Beams,
        hidden: torch.Tensor,
        width: int,
        restriction: Restriction | None,
        offsets: Offsets | None,
    ) -> Beams:
        """Extend `beams` [B, K], whose hidden states are [B, K, H], by one code; keep the `width` best."""
        size, k = beams.scores.shape
        flat, parents = hidden.reshape(size * k, -1), beams.nodes.reshape(-1)
        scores = self._continuations(level, flat, parents, restriction).view(size, k, -1)
        totals = beams.scores[:, :, None] + scores
        order = self._order(level, beams, totals, offsets)
        top, best = order.view(size, -1).topk(min(width, order[0].numel()), dim=1)
        require_numbers(top, level, self.trie.levels)  # topk sorts NaN before all numbers
        parent, code = best // scores.shape[2], best % scores.shape[2]
        totals = totals.view(size, -1).gather(1, best)
        from_parent = beams.nodes.gather(1, parent)
        wanted = code
        if self.config.constraint == "none":
            wanted = codes_of(code, self.head.tokens[level], self.code_of_token)
        nodes = self.trie.step(level, from_parent.reshape(-1), wanted.reshape(-1)).view_as(code)
        nodes = torch.where(torch.isneginf(totals), -1, nodes)
        ancestors = beams.ancestors.gather(1, parent[:, :, None].expand(-1, -1, beams.ancestors.shape[2]))
        return Beams(totals, nodes, code, ancestors, top)

    def _order(self, level: int, beams: Beams, totals: torch.Tensor, offsets: Offsets | None) -> torch.Tensor:
        """The numbers by which the continuations of `beams` are chosen, float32 [B, K, C].

        Args:
            level: of the continuations.
            beams: of the level before.
            totals: float32 [B, K, C], the scores of the continuations; -inf for those that are not allowed.
            offsets: as in `BeamSearch.rank`.
        """
        if offsets is None:
            return totals
        return totals + self._bounds(level, beams.nodes.reshape(-1), offsets).view_as(totals)

    def _continuations(
        self, level: int, hidden: torch.Tensor, parents: torch.Tensor, restriction: Restriction | None
    ) -> torch.Tensor:
        """Log-probability of each code (constraint none: token) after each beam, [R, C]; -inf for codes not allowed."""
        if self.config.constraint == "none":
            return self.head.vocabulary(hidden)
        scores = self.head.level(hidden, level)
        if self.config.constraint == "level":
            return scores
        rows, nodes = self.trie.children(level, parents)
        if self.config.scoring == "catalogue":
            scores = self._among_siblings(level, scores, rows, nodes)
            scores = torch.where(parents[:, None] >= 0, scores, -torch.inf)
        if restriction is not None:
            requests = torch.arange(len(parents), device=parents.device) // (len(parents) // len(restriction.filters))
            rows, nodes = restriction.children(level, requests, parents)
        return _keep(scores, rows, self.trie.codes(level, nodes))

    def _among_siblings(
        self, level: int, scores: torch.Tensor, rows: torch.Tensor, nodes: torch.Tensor
    ) -> torch.Tensor:
        """Normalise the scores of each beam's children, so that cold items do not change the scores of warm items.

        For a code c after one beam, with score s(c):

            log p(c) = min(0, s(c) - logsumexp(s(c') for all children c' that have a warm item below))

        If no child has a warm item below, the sum is over all children.

        Args:
            level: of the children.
            scores: float32 [R, C], unnormalised scores of all codes.
            rows: int64 [n], the beam of each child.
            nodes: int64 [n], the children.

        Returns:
            float32 [R, C], -inf for codes without a child.
        """
        codes = self.trie.codes(level, nodes)
        kept = _keep(scores, rows, codes)
        if self._trained is None:
            return kept.log_softmax(-1)
        known = self._trained[level][nodes]
        total = _keep(scores, rows[known], codes[known]).logsumexp(-1, keepdim=True)
        total = torch.where(torch.isneginf(total), kept.logsumexp(-1, keepdim=True), total)
        return (kept - total).clamp(max=0)

    def _bounds(self, level: int, parents: torch.Tensor, offsets: Offsets) -> torch.Tensor:
        """The largest offset below each child of `parents` int64 [R], by code: float32 [R, C]; 0 where no child is."""
        rows, nodes = self.trie.children(level, parents)
        bounds = torch.zeros((len(parents), self.trie.level_sizes[level]), device=parents.device)
        bounds[rows, self.trie.codes(level, nodes)] = offsets.bounds[level][nodes]
        return bounds

    def _tokens(self, level: int, codes: torch.Tensor) -> torch.Tensor:
        """The item tokens of `codes`, int64 of the same shape; with constraint none, `codes` are tokens already."""
        return codes if self.config.constraint == "none" else self.head.tokens[level][codes]

    def _open(self, level: int, beams: Beams) -> torch.Tensor:
        """bool [B, K]: the beams whose next code the model must score.

        With scoring catalogue, a beam with a single leaf below needs no model: the rest of its codes has probability 1.
        """
        alive = ~torch.isneginf(beams.scores)
        if self.config.scoring != "catalogue":
            return alive
        return alive & ~self.trie.single_leaf(level, beams.nodes.clamp(min=0))


def _keep(scores: torch.Tensor, rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """`scores` [R, C] at the cells (`rows[i]`, `codes[i]`), -inf elsewhere."""
    kept = torch.full_like(scores, -torch.inf)
    kept[rows, codes] = scores[rows, codes]
    return kept


def _distinct(nodes: torch.Tensor, above: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Remove duplicate nodes within each row.

    Args:
        nodes: int64 [B, M], -1 for none.
        above: int64 [B, M], the column of each node's parent in the level before.

    Returns:
        distinct: int64 [B, K], the different nodes of each row, padded by -1 at the end.
        place: int64 [B, M], the column of `distinct` that holds each of `nodes`; 0 for -1.
        parents: int64 [B, K], the column of each distinct node's parent in the level before.
    """
    size = len(nodes)
    span = int(nodes.max()) + 2
    key = torch.arange(size, device=nodes.device)[:, None] * span + nodes + 1
    unique, inverse = torch.unique(key, return_inverse=True)
    row = unique // span
    real = unique % span > 0
    count = torch.zeros(size, dtype=torch.int64, device=nodes.device).index_add_(0, row, real.long())
    # 1 for a row that contains -1, which is then one of its unique keys.
    before = torch.zeros_like(count).index_add_(0, row, (~real).long())
    first = (count + before).cumsum(0) - count
    place = (inverse - first[torch.arange(size, device=nodes.device)][:, None]).clamp(min=0)
    distinct = torch.full((size, max(1, int(count.max()))), -1, dtype=torch.int64, device=nodes.device)
    parents = torch.zeros_like(distinct)
    at = torch.arange(len(unique), device=nodes.device) - first[row]
    distinct[row[real], at[real]] = unique[real] % span - 1
    own = (nodes >= 0).nonzero(as_tuple=True)
    parents[own[0], place[own]] = above[own]
    return distinct, place, parents
