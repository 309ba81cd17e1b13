"""The provably best items: best-first search over prefixes, instead of a beam.

A prefix's log-probability, plus the best offset below it, bounds that of every item below; so once the k best items
found are at least as good as every open prefix, no other can be better (A*, Hart et al. 1968).
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from llmrec.decode.context import Context
from llmrec.decode.filters import Restriction
from llmrec.decode.search import Offsets, PrefilledBatch, require_numbers
from llmrec.decode.tree import TreeSearch


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
