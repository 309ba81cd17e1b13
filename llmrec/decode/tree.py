"""Beam search with one row per user, and the exact search on top of it.

The beams of a user are extra query positions under a tree attention mask. A step is one forward pass of B x K tokens;
the key/value cache of the prompts is neither copied nor reordered.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from llmrec.decode.context import Body, Context, ItemHead, shared_start
from llmrec.decode.filters import Restriction
from llmrec.decode.search import BeamSearch, Offsets, PrefilledBatch, codes_of, require_numbers


@dataclass
class Beams:
    """The state of a batch after some levels; K grows to the width as the levels allow.

    Attributes:
        scores: float32 [B, K], sums of log-probabilities, -inf for a beam that is not alive.
        nodes: int64 [B, K], in the trie, -1 for none.
        codes: int64 [B, K], the last code (with constraint none: the last token).
        ancestors: int64 [B, K, depth]: slots of the tree part of the cache that a beam sees.
    """

    scores: torch.Tensor
    nodes: torch.Tensor
    codes: torch.Tensor
    ancestors: torch.Tensor


class PrefilledTree(PrefilledBatch):
    """A batch of prompts in the key/value cache."""

    def __init__(self, prompts: list[Sequence[int]], context: Context) -> None:
        self.prompts = prompts
        self.context = context

    @property
    def hidden(self) -> torch.Tensor:
        return self.context.start()[:, 0]


class TreeSearch(BeamSearch):
    """Exactly the beams of `generate` (scoring vocab), without its copies."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.body = Body(self.model, self.dtype)
        self.model = self.body.model
        self.head = ItemHead(self.model, self.vocabulary, self.config.scoring, self.dtype)
        self._trained: list[torch.Tensor] | None = None  # per level, bool [nodes]
        if self.is_cold is not None and self.is_cold.any():
            ordered = torch.from_numpy(~self.is_cold).to(self.device)[self.trie.order.long()]
            before = torch.cat([torch.zeros_like(ordered[:1], dtype=torch.int64), ordered.cumsum(0)])
            self._trained = [before[first[1:].long()] > before[first[:-1].long()] for first in self.trie.firsts]
        size = self.head.weight.shape[0]
        self.code_of_token = torch.from_numpy(self.vocabulary.code_of_token(size)).to(self.device)

    @torch.inference_mode()
    def prefill(self, prompts: list[Sequence[int]]) -> "PrefilledTree":
        shared = shared_start(prompts)
        ids, mask = self._padded([prompt[shared:] for prompt in prompts])
        room = self.config.beams * (self.trie.levels - 1)
        return PrefilledTree(prompts, Context(self.body, ids, mask, prompts[0][:shared], room))

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
        """The `width` best beams of `length` codes, and, where they may go on, their hidden states [B, K, H]."""
        assert isinstance(prefilled, PrefilledTree), "what this search has opened"
        hidden = prefilled.context.start()
        size = len(hidden)
        start = torch.zeros((size, 1), dtype=torch.int64, device=self.device)
        beams = Beams(start.float(), start, start, torch.empty((size, 1, 0), dtype=torch.int64, device=self.device))
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
        """Log-probability of each code of given items, after the codes before it.

        Args:
            opened: B prompts.
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
        place = torch.zeros_like(wanted)  # of each item's prefix among the row's
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
        """The best `width` continuations of `beams` [B, K] by one code, given their hidden states [B, K, H]."""
        size, k = beams.scores.shape
        flat, parents = hidden.reshape(size * k, -1), beams.nodes.reshape(-1)
        scores = self._continuations(level, flat, parents, restriction).view(size, k, -1)
        totals = beams.scores[:, :, None] + scores
        order = totals if offsets is None else totals + self._bounds(level, parents, offsets).view_as(totals)
        top, best = order.view(size, -1).topk(min(width, order[0].numel()), dim=1)
        require_numbers(top, level, self.trie.levels)  # topk puts what is none before all numbers
        parent, code = best // scores.shape[2], best % scores.shape[2]
        totals = totals.view(size, -1).gather(1, best)
        from_parent = beams.nodes.gather(1, parent)
        wanted = code
        if self.config.constraint == "none":
            wanted = codes_of(code, self.head.tokens[level], self.code_of_token)
        nodes = self.trie.step(level, from_parent.reshape(-1), wanted.reshape(-1)).view_as(code)
        nodes = torch.where(torch.isneginf(totals), -1, nodes)
        ancestors = beams.ancestors.gather(1, parent[:, :, None].expand(-1, -1, beams.ancestors.shape[2]))
        return Beams(totals, nodes, code, ancestors)

    def _continuations(
        self, level: int, hidden: torch.Tensor, parents: torch.Tensor, restriction: Restriction | None
    ) -> torch.Tensor:
        """Log-probability of each code (constraint none: token) after each beam [R, C]; -inf where it can't follow."""
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
        """Log-probability of the children `nodes` of beams `rows`, [R, C], given the codes' `scores` [R, C].

        Those that lead to items with training events share the probability, as they do without the others; a child of
        new items alone is measured by the same total, as certain at most. Where all are new, they share it.
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
        """The largest offset below each code's node, float32 [R, C]; 0 where there is none."""
        rows, nodes = self.trie.children(level, parents)
        bounds = torch.zeros((len(parents), self.trie.level_sizes[level]), device=parents.device)
        bounds[rows, self.trie.codes(level, nodes)] = offsets.bounds[level][nodes]
        return bounds

    def _tokens(self, level: int, codes: torch.Tensor) -> torch.Tensor:
        """The tokens of `codes` (constraint none: which are tokens already), int64 of the same shape."""
        return codes if self.config.constraint == "none" else self.head.tokens[level][codes]

    def _open(self, level: int, beams: Beams) -> torch.Tensor:
        """bool [B, K]: beams whose next code has yet to be scored; with scoring catalogue not those of one leaf."""
        alive = ~torch.isneginf(beams.scores)
        if self.config.scoring != "catalogue":
            return alive
        return alive & ~self.trie.single_leaf(level, beams.nodes.clamp(min=0))


def _keep(scores: torch.Tensor, rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """`scores` [R, C] at the given cells, -inf elsewhere."""
    kept = torch.full_like(scores, -torch.inf)
    kept[rows, codes] = scores[rows, codes]
    return kept


def _distinct(nodes: torch.Tensor, above: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The different nodes in each row of int64 [B, M] (-1: none), whose places among their parents are `above` [B, M].

    Returns:
        int64 [B, K] the nodes, -1 at the end; [B, M] the place of each of the given among them (0 for none); [B, K]
        their places among their parents.
    """
    size = len(nodes)
    span = int(nodes.max()) + 2
    key = torch.arange(size, device=nodes.device)[:, None] * span + nodes + 1
    unique, inverse = torch.unique(key, return_inverse=True)
    row = unique // span
    real = unique % span > 0
    count = torch.zeros(size, dtype=torch.int64, device=nodes.device).index_add_(0, row, real.long())
    before = torch.zeros_like(count).index_add_(0, row, (~real).long())  # the place that "none" takes in a row
    first = (count + before).cumsum(0) - count
    place = (inverse - first[torch.arange(size, device=nodes.device)][:, None]).clamp(min=0)
    distinct = torch.full((size, max(1, int(count.max()))), -1, dtype=torch.int64, device=nodes.device)
    parents = torch.zeros_like(distinct)
    at = torch.arange(len(unique), device=nodes.device) - first[row]
    distinct[row[real], at[real]] = unique[real] % span - 1
    own = (nodes >= 0).nonzero(as_tuple=True)
    parents[own[0], place[own]] = above[own]
    return distinct, place, parents


@dataclass(order=True)
class Prefix:
    """An open prefix; the smallest is the most promising.

    Attributes:
        bound: minus the best score that an item below may have.
        score: sum of log-probabilities.
        level: of its last code.
        node: in the trie.
        slots: of the tree part of the cache: its ancestors'.
    """

    bound: float
    score: float = field(compare=False)
    level: int = field(compare=False)
    node: int = field(compare=False)
    slots: tuple[int, ...] = field(compare=False)


class ExactSearch(TreeSearch):
    """Returns the k best items of each request; the number of beams is how many prefixes run at once."""

    def _width(self, k: int, beams: int) -> int:
        return k

    @torch.inference_mode()
    def _leaves(
        self, prefilled: PrefilledBatch, width: int, restriction: Restriction | None, offsets: Offsets | None
    ) -> tuple[np.ndarray, np.ndarray]:
        leaves = np.full((len(prefilled.prompts), width), -1, np.int64)
        scores = np.full((len(prefilled.prompts), width), -np.inf, np.float32)
        for row, prompt in enumerate(prefilled.prompts):
            own = None if restriction is None else Restriction(self.trie, [restriction.filters[row]])
            found = self._best(prompt, width, own, offsets)
            leaves[row, : len(found)] = [prefix.node for prefix in found]
            scores[row, : len(found)] = [prefix.score for prefix in found]
        return leaves, scores

    def _best(
        self, prompt: Sequence[int], k: int, restriction: Restriction | None, offsets: Offsets | None
    ) -> list[Prefix]:
        """The k best leaves of one request, best first."""
        context = Context(self.body, *self._padded([prompt]))
        root = Prefix(0.0, 0.0, -1, 0, ())
        heap = self._children(root, context.start()[0, 0], restriction, offsets)
        heapq.heapify(heap)
        found: list[Prefix] = []
        last = self.trie.levels - 1
        while heap and len(found) < k:
            if heap[0].level == last:  # no open prefix can beat it
                found.append(heapq.heappop(heap))
                continue
            chosen: list[Prefix] = []
            while heap and heap[0].level < last and len(chosen) < self.config.beams:
                chosen.append(heapq.heappop(heap))
            for child in self._expand(context, chosen, restriction, offsets):
                heapq.heappush(heap, child)
        return found

    def _expand(
        self, context: Context, prefixes: list[Prefix], restriction: Restriction | None, offsets: Offsets | None
    ) -> list[Prefix]:
        """Run the last codes of some prefixes; the prefixes that are one code longer."""
        depth = max(len(prefix.slots) for prefix in prefixes)
        slots = [[*prefix.slots, *[-1] * (depth - len(prefix.slots))] for prefix in prefixes]
        tokens = [
            int(self.head.tokens[prefix.level][self.trie.codes(prefix.level, torch.tensor(prefix.node))])
            for prefix in prefixes
        ]
        hidden, ancestors = context.extend(
            torch.tensor([tokens], device=self.device),
            torch.tensor([[prefix.level for prefix in prefixes]], device=self.device),
            torch.tensor(slots, dtype=torch.int64, device=self.device).view(1, len(prefixes), depth),
            torch.ones((1, len(prefixes)), dtype=torch.bool, device=self.device),
        )
        children = []
        for row, prefix in enumerate(prefixes):
            ran = replace(prefix, slots=(*prefix.slots, int(ancestors[0, row, -1])))
            children += self._children(ran, hidden[0, row], restriction, offsets)
        return children

    def _children(
        self, prefix: Prefix, hidden: torch.Tensor, restriction: Restriction | None, offsets: Offsets | None
    ) -> list[Prefix]:
        """The prefixes that continue one whose hidden state [H] is known."""
        level, parent = prefix.level + 1, torch.tensor([prefix.node], device=self.device)
        scores = self._continuations(level, hidden[None], parent, restriction)
        require_numbers(scores, level, self.trie.levels)
        codes = torch.isfinite(scores[0]).nonzero().flatten()
        nodes = self.trie.step(level, parent.expand(len(codes)), codes)
        bounds = torch.zeros_like(scores) if offsets is None else self._bounds(level, parent, offsets)
        bounds = bounds[0, codes]
        if offsets is not None and restriction is not None and level == self.trie.levels - 1:
            # A leaf must count for what it is worth: the best offset may be that of an item which is not let through.
            for at in (self.trie.counts(level, nodes) > 1).nonzero().flatten().tolist():
                items = self.trie.items_of(int(nodes[at])).cpu().numpy()
                bounds[at] = float(offsets.items[items[restriction.filters[0].allows(items)]].max())
        return [
            Prefix(-(prefix.score + score + bound), prefix.score + score, level, node, prefix.slots)
            for score, bound, node in zip(scores[0, codes].tolist(), bounds.tolist(), nodes.tolist(), strict=True)
        ]
