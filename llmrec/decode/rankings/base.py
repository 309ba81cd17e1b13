"""What a ranking of one model is, and the plain ones: by beams and by the dense head."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llmrec.collaborative.fused import FusedExperts
from llmrec.collaborative.fusion import FusionWeights
from llmrec.decode.behaviour import BehaviourStream
from llmrec.decode.config import WITHOUT_HEAD, DecodeConfig, RankingName
from llmrec.decode.filters import Filter
from llmrec.decode.search import BeamSearch, NotNumbersError, Offsets, PrefilledBatch, Ranking
from llmrec.decode.tree import TreeSearch
from llmrec.errors import UserError
from llmrec.index.dense import DenseIndex
from llmrec.index.text import TextIndex
from llmrec.index.trie import ItemTrie


@dataclass(frozen=True)
class ItemFacts:
    """What is known of a catalogue's N items beside their codes.

    Attributes:
        is_cold: bool [N], items without training events.
        content_levels: levels of a semantic ID that tell content; a dedup level comes after them.
        dense: the items as vectors, where the model has a dense head.
        fusion_weights: of the fusion, where it has been calibrated.
        experts: what else ranks the items, without the language model.
        texts: what finds the items by words, for a model that is asked in words.
        behaviour: the model's second stream, where the items have codes of behaviour.
    """

    is_cold: np.ndarray
    content_levels: int
    dense: DenseIndex | None = None
    fusion_weights: FusionWeights | None = None
    experts: FusedExperts | None = None
    texts: TextIndex | None = None
    behaviour: BehaviourStream | None = None


class RankingMethod(ABC):
    """Ranks the items of a catalogue for any prompts.

    Args:
        search: the beams.
        facts: of the same catalogue.
        config: beams, and what the methods leave open.

    Raises:
        UserError: the model or its bundle lacks what the method needs.
    """

    name: RankingName

    def __init__(self, search: BeamSearch, facts: ItemFacts, config: DecodeConfig) -> None:
        self.search = search
        self.facts = facts
        self.config = config
        if self.name not in WITHOUT_HEAD:
            _ = self.dense  # its error comes now, not at the first request

    def rank(
        self,
        prompts: Sequence[Sequence[int]],
        k: int,
        filters: Sequence[Filter] | None = None,
        offsets: np.ndarray | None = None,
    ) -> Ranking:
        """The k best items of each prompt (token ids) that its filter lets through.

        Args:
            prompts: token ids per request.
            k: answers per request.
            filters: per request, which items may come out.
            offsets: float [N], added to each item's score.
        """
        bonus = None if offsets is None else Offsets(self.search.trie, offsets)
        parts = []
        for chosen in self.search.batches(prompts):
            own = None if filters is None else [filters[i] for i in chosen]
            parts.append((chosen, self._rank(self.search.prefill([prompts[i] for i in chosen]), k, own, bonus)))
        return Ranking.joined(len(prompts), k, parts)

    @abstractmethod
    def _rank(
        self, prefilled: PrefilledBatch, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None
    ) -> Ranking:
        """The ranking of one batch."""

    @property
    def dense(self) -> DenseIndex:
        """The items as vectors.

        Raises:
            UserError: the model has no dense head.
        """
        if self.facts.dense is None:
            raise UserError(
                f"--decode.ranking {self.name}: this model has no dense head; train it with --train.dense.weight 1, or "
                "choose beam or quota."
            )
        return self.facts.dense

    def dense_scores(self, prefilled: PrefilledBatch) -> np.ndarray:
        """Log-probability of each item by the dense head, normalised over the warm items: float32 [B, N]."""
        dense = self.dense
        is_cold = torch.from_numpy(self.facts.is_cold).to(dense.vectors.device)
        return as_array(dense.log_probabilities(prefilled.hidden, is_cold))

    @property
    def tree(self) -> TreeSearch:
        """The search, if it can score single items.

        Raises:
            UserError: the search uses `generate`, or another constraint than the trie.
        """
        if not isinstance(self.search, TreeSearch) or self.search.config.constraint != "trie":
            raise UserError(
                f"--decode.ranking {self.name} needs a model that takes tree attention masks, and --decode.constraint "
                "trie; choose beam, quota, dense or liger."
            )
        return self.search


def allowed(filters: Sequence[Filter] | None, rows: int, items: int) -> np.ndarray:
    """bool [B, N]: the items that each request allows."""
    mask = np.ones((rows, items), dtype=bool)
    for row, each in enumerate(filters or ()):
        if each.allowed is not None:
            mask[row] = False
            mask[row, each.allowed] = True
        if each.excluded is not None:
            mask[row, each.excluded] = False
    return mask


def top(scores: np.ndarray, k: int, items: np.ndarray | None = None) -> Ranking:
    """The k best of M candidates per request.

    Args:
        scores: float32 [B, M]; -inf marks a candidate that is not allowed.
        k: answers per request.
        items: int64 [B, M], the candidates; default: all items, in catalogue order.

    Raises:
        NotNumbersError: a score is NaN.
    """
    if np.isnan(scores).any():
        raise NotNumbersError("the ranking's scores are not numbers")
    most = min(k, scores.shape[1])
    best = np.argpartition(-scores, most - 1, axis=1)[:, :most] if most else np.empty((len(scores), 0), np.int64)
    values = np.take_along_axis(scores, best, axis=1)
    order = np.lexsort((best, -values), axis=1)
    best, values = np.take_along_axis(best, order, axis=1), np.take_along_axis(values, order, axis=1)
    found = best if items is None else np.take_along_axis(items, best, axis=1)
    found = np.where(np.isneginf(values), -1, found).astype(np.int64)
    room = ((0, 0), (0, k - most))
    values = np.pad(values.astype(np.float32), room, constant_values=-np.inf)
    return Ranking(np.pad(found, room, constant_values=-1), values, 0, 0, 0, 0)


def candidates(*parts: np.ndarray) -> np.ndarray:
    """The union of lists of items, int64 [B, *] with -1 as padding: int64 [B, M], -1 at the end of a row."""
    rows = [np.unique(row[row >= 0]) for row in np.concatenate(parts, axis=1)]
    united = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int64)
    for row, items in enumerate(rows):
        united[row, : len(items)] = items
    return united


def item_nodes(trie: ItemTrie, length: int) -> np.ndarray:
    """int64 [N]: the node of each item's first `length` codes; -1 for items that were removed."""
    nodes = np.full(trie.n_items, -1, dtype=np.int64)
    order = trie.order.long()
    nodes[order.cpu().numpy()] = trie.paths(order)[length - 1].cpu().numpy()
    return nodes


def as_array(scores: torch.Tensor) -> np.ndarray:
    """Float32, on the CPU."""
    return scores.float().cpu().numpy()


class BeamRanking(RankingMethod):
    """Log-probability of the semantic ID."""

    name: RankingName = "beam"

    def _rank(
        self, prefilled: PrefilledBatch, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None
    ) -> Ranking:
        return self.search.rank(prefilled, k, filters, offsets=offsets)


class DenseRanking(RankingMethod):
    """Cosine over a temperature, as log-probability among all items."""

    name: RankingName = "dense"

    def _rank(
        self, prefilled: PrefilledBatch, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None
    ) -> Ranking:
        scores = self.dense_scores(prefilled)
        if offsets is not None:
            scores = scores + offsets.items
        return top(np.where(allowed(filters, *scores.shape), scores, -np.inf), k)
