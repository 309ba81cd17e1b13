"""The second stream of a model with two: after a history in codes of behaviour, the next item's codes of behaviour."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from llmrec.decode.filters import Filter
from llmrec.decode.search import BeamSearch, Offsets, PrefilledBatch, Prompt, Ranking
from llmrec.decode.tree import TreeSearch
from llmrec.tasks.render import Renderer


@dataclass(frozen=True)
class Reading:
    """The prompts of a batch of B requests, in the codes of behaviour.

    Attributes:
        size: B.
        rows: the requests that have such a prompt, [R].
        prefilled: their prompts; None if there are none.
    """

    size: int
    rows: list[int]
    prefilled: PrefilledBatch | None


class BehaviourStream:
    """Ranks the items that have codes of behaviour, for requests whose history has such items, and no words.

    Args:
        search: in the codes of behaviour; its trie lacks the items without such codes.
        renderer: of the same codes.
    """

    def __init__(self, search: BeamSearch, renderer: Renderer) -> None:
        self.search = search
        self.renderer = renderer
        self.known = search.trie.leaves.cpu().numpy() >= 0

    def read(self, prompts: Sequence[Sequence[int]]) -> Reading:
        """The prompts of the same requests, whose prompts an `ItemRanker` wrote."""
        asked = cast(Sequence[Prompt], prompts)
        told = ["" if prompt.query is not None else self.renderer.history(prompt.history) for prompt in asked]
        rows = [row for row, history in enumerate(told) if history]
        texts = [self.renderer.prompt("sequential", 0, history=told[row]) for row in rows]
        prefilled = self.search.prefill([*self.renderer.encode_prompts(texts)]) if rows else None
        return Reading(len(told), rows, prefilled)

    def rank(
        self, reading: Reading, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None = None
    ) -> Ranking:
        """The k best items of each of B requests, none for a request without a prompt; arguments as for a search."""
        if reading.prefilled is None:
            return Ranking.joined(reading.size, k, [])
        own = None if filters is None else [filters[row] for row in reading.rows]
        bonus = None if offsets is None else Offsets(self.search.trie, offsets.items)
        ranking = self.search.rank(reading.prefilled, k, own, offsets=bonus)
        return Ranking.joined(reading.size, k, [(reading.rows, ranking)])

    def log_probabilities(self, reading: Reading, items: np.ndarray) -> np.ndarray:
        """Log-probability of the given items, int64 [B, M] with -1 for none: float32 [B, M].

        Where the stream knows nothing, of an item without such codes or a request without a prompt, it is that of one
        of the items with such codes, all equally likely.
        """
        values = np.full(items.shape, -math.log(self.known.sum()), np.float32)
        if reading.prefilled is not None:
            assert isinstance(self.search, TreeSearch), "a search that scores given items"
            own = items[reading.rows]
            there = (own >= 0) & self.known[own]
            codes = self.search.code_scores(reading.prefilled, np.where(there, own, -1))
            values[reading.rows] = np.where(there, codes.sum(axis=2), values[reading.rows])
        return values
