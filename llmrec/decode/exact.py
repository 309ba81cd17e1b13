"""The exact search: best first, with an upper bound of the score of all items below each prefix."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from llmrec.decode.context import Context
from llmrec.decode.encoded import open_context
from llmrec.decode.filters import Restriction
from llmrec.decode.search import Offsets, PrefilledBatch, require_numbers
from llmrec.decode.tree import TreeSearch


@dataclass(order=True)
class Prefix:
    """A prefix in the priority queue of the exact search; the smallest one has the largest upper bound of its score.

    Attributes:
        bound: minus an upper bound of the score of all items below.
        score: sum of the log-probabilities of its codes.
        level: of its last code; -1 for the root.
        node: its node of the trie.
        slots: the slots in the tree part of the cache of its codes that the model has read.
    """

    bound: float
    score: float = field(compare=False)
    level: int = field(compare=False)
    node: int = field(compare=False)
    slots: tuple[int, ...] = field(compare=False)


class ExactSearch(TreeSearch):
    """Best-first search: returns exactly the k best items of each request.

    `config.beams` is the number of prefixes in one forward pass; it does not change the result.
    """

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
        context = open_context(self.body, [prompt], self.pad_token_id)
        root = Prefix(0.0, 0.0, -1, 0, ())
        heap = self._children(root, context.start()[0, 0], restriction, offsets)
        heapq.heapify(heap)
        found: list[Prefix] = []
        last = self.trie.levels - 1
        while heap and len(found) < k:
            if heap[0].level == last:  # no prefix in the queue has a larger upper bound
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
        """Run the model on the last codes of `prefixes`; return all prefixes that are one code longer."""
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
        """The prefixes that continue `prefix` by one code, given its hidden state [H]."""
        level, parent = prefix.level + 1, torch.tensor([prefix.node], device=self.device)
        scores = self._continuations(level, hidden[None], parent, restriction)
        require_numbers(scores, level, self.trie.levels)
        codes = torch.isfinite(scores[0]).nonzero().flatten()
        nodes = self.trie.step(level, parent.expand(len(codes)), codes)
        bounds = torch.zeros_like(scores) if offsets is None else self._bounds(level, parent, offsets)
        bounds = bounds[0, codes]
        if offsets is not None and restriction is not None and level == self.trie.levels - 1:
            # At a leaf the bound must be exact, but the largest offset may belong to an item that the filter excludes.
            for at in (self.trie.counts(level, nodes) > 1).nonzero().flatten().tolist():
                items = self.trie.items_of(int(nodes[at])).cpu().numpy()
                bounds[at] = float(offsets.items[items[restriction.filters[0].allows(items)]].max())
        return [
            Prefix(-(prefix.score + score + bound), prefix.score + score, level, node, prefix.slots)
            for score, bound, node in zip(scores[0, codes].tolist(), bounds.tolist(), nodes.tolist(), strict=True)
        ]
