"""The interface of every beam search: prompts in, ranked items out."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch

from llmrec.decode.config import DecodeConfig, Scoring
from llmrec.decode.filters import Filter, Restriction
from llmrec.device import device_of, on_device, resolve_dtype
from llmrec.index.trie import ItemTrie, ranges
from llmrec.model.architecture import unwrapped
from llmrec.model.tokens import ItemVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEAD = -1e8
"""A beam is alive if its score is above this: `generate` starts all beams but the first, unused, at -1e9."""


class NotNumbersError(RuntimeError):
    """The model's scores contain NaN; the message names the level."""


def require_numbers(scores: torch.Tensor, level: int, levels: int) -> None:
    """Raise NotNumbersError if one of the `scores` of `level` (from 0) is NaN."""
    if torch.isnan(scores).any():
        raise NotNumbersError(f"the model's scores at level {level + 1} of {levels} are not numbers")


def codes_of(tokens: torch.Tensor, level_tokens: torch.Tensor, code_of_token: torch.Tensor) -> torch.Tensor:
    """Convert item tokens of one level to codes.

    Args:
        tokens: token ids, int64 of any shape.
        level_tokens: int64 [C], the item tokens of the level, by code.
        code_of_token: `ItemVocabulary.code_of_token`; it may be of any size that contains all item tokens.

    Returns:
        int64, the shape of `tokens`: the codes; -1 for item tokens of other levels and for words.
    """
    codes = code_of_token[tokens.clamp(max=len(code_of_token) - 1)]
    own = level_tokens[codes.clamp(min=0, max=len(level_tokens) - 1)] == tokens
    return torch.where(own, codes, -1)


def left_padded(
    prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded token ids and attention mask, int64 [B, T]."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), length), pad_token_id, dtype=torch.int64)
    mask = torch.zeros((len(prompts), length), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.int64)
        mask[row, length - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


@dataclass(frozen=True)
class Ranking:
    """The best items per request, best first.

    Attributes:
        items: int64 [B, K], rows of the catalogue, -1 where fewer than K were found.
        scores: float32 [B, K], log-probability of the semantic ID given the prompt, plus the item's offset; -inf
            where there is no item. Items with the same semantic ID all get its full log-probability.
        width: number of beams per request (exact search: number of semantic IDs searched for).
        beams: number of beams that are alive, summed over all requests.
        invalid: number of these beams whose codes are not the semantic ID of an item.
        invalid_first: number of requests whose best beam is invalid.
    """

    items: np.ndarray
    scores: np.ndarray
    width: int
    beams: int
    invalid: int
    invalid_first: int

    @classmethod
    def joined(cls, n: int, k: int, parts: Sequence[tuple[Sequence[int], "Ranking"]]) -> Self:
        """Join the rankings of parts of n requests; each part comes with the indices of its requests."""
        items = np.full((n, k), -1, dtype=np.int64)
        scores = np.full((n, k), -np.inf, dtype=np.float32)
        for chosen, part in parts:
            items[chosen], scores[chosen] = part.items, part.scores
        counts = [sum(getattr(part, name) for _, part in parts) for name in ("beams", "invalid", "invalid_first")]
        return cls(items, scores, max((part.width for _, part in parts), default=0), *counts)


class Prompt(list[int]):
    """The token ids of one request, together with the items of its history.

    Attributes:
        history: int64 [n], rows of the catalogue that the prompt shows, oldest first. The tokens alone can't
            distinguish items that share a semantic ID.
        query: the request in plain words; None if it has a history only.
        after: writes the prompt of the same request with further items, rows of the catalogue, behind the history; None
            if nobody knows how.
    """

    def __init__(
        self,
        tokens: Iterable[int],
        history: Sequence[int] | np.ndarray = (),
        query: str | None = None,
        after: "Callable[[Sequence[int]], Prompt] | None" = None,
    ) -> None:
        super().__init__(tokens)
        self.history = np.asarray(history, np.int64)
        self.query = query
        self.after = after


class PrefilledBatch(ABC):
    """A batch of B prompts that the model has read.

    Attributes:
        prompts: token ids; a ranking that uses the items of the history needs `Prompt`s.
    """

    prompts: list[Sequence[int]]

    @property
    @abstractmethod
    def hidden(self) -> torch.Tensor:
        """The last hidden state of each prompt, the input of the model's output head: float [B, H]."""


class BeamSearch(ABC):
    """Constrained beam search with a language model.

    With as many beams as items, the result is the exact ranking of the whole catalogue.

    Args:
        model: any causal language model or encoder-decoder of transformers, or a PEFT model around it, with rows for
            the item tokens.
        vocabulary: the item tokens.
        trie: of the catalogue.
        config: beams, scoring, batch size, arithmetic, device.
        pad_token_id: pads prompts. These positions are masked, so any token can be used.
        is_cold: bool [N], items without training events. Scoring catalogue is a distribution over the warm items only,
            so that the scores of warm items do not change when cold items are added.

    Attributes:
        config: scoring auto is replaced by the scoring that it selects.
    """

    auto_scoring: ClassVar[Scoring] = "catalogue"
    """The scoring that auto selects with constraint trie."""

    def __init__(
        self,
        model: "PreTrainedModel",
        vocabulary: ItemVocabulary,
        trie: ItemTrie,
        config: DecodeConfig,
        pad_token_id: int = 0,
        is_cold: np.ndarray | None = None,
    ) -> None:
        model = on_device(model, config.device).eval()
        self.device = device_of(model.get_output_embeddings())
        self.dtype = resolve_dtype(config.dtype, self.device)
        # The layers of the base model contain the adapter of a PEFT model. The PEFT wrapper is not needed; it would
        # compute the logits of the whole prompt.
        self.model = unwrapped(model)
        self.vocabulary = vocabulary
        auto = self.auto_scoring if config.constraint == "trie" else "vocab"
        self.config = config if config.scoring != "auto" else replace(config, scoring=auto)
        self.pad_token_id = pad_token_id
        self._set_items(trie, is_cold)

    def with_items(self, trie: ItemTrie, is_cold: np.ndarray | None) -> Self:
        """The same search over other items, with the same level sizes; it shares the model, which is not tried again.

        Args:
            trie: of the other catalogue.
            is_cold: bool [N] of the other catalogue.
        """
        other = copy.copy(self)
        other._set_items(trie, is_cold)
        return other

    def in_other_codes(self, vocabulary: ItemVocabulary, trie: ItemTrie) -> Self:
        """The same search over the same items in other codes; it shares the model, which is not tried again."""
        other = self.with_items(trie, self.is_cold)
        other._set_codes(vocabulary)
        return other

    def _set_codes(self, vocabulary: ItemVocabulary) -> None:
        self.vocabulary = vocabulary

    def _set_items(self, trie: ItemTrie, is_cold: np.ndarray | None) -> None:
        self.trie = trie.to(self.device)
        self.is_cold = is_cold

    def search(
        self,
        prompts: Sequence[Sequence[int]],
        k: int,
        filters: Sequence[Filter] | None = None,
        beams: int | None = None,
        offsets: np.ndarray | None = None,
    ) -> Ranking:
        """Rank items for each prompt.

        Args:
            prompts: token ids per request, of any lengths >= 1.
            k: results per request; the search uses max(k, beams) beams, at most one per item.
            filters: per request, the items that may be returned. The search returns k different allowed items
                whenever at least k items are allowed.
            beams: replaces the configured number of beams.
            offsets: float [N], added to each item's score in every request. The search prunes by score plus the
                largest offset below a prefix.

        Returns:
            The k best items per request.

        Raises:
            NotNumbersError: the model's scores contain NaN.
        """
        bonus = None if offsets is None else Offsets(self.trie, offsets)
        parts = []
        for chosen in self.batches(prompts):
            own = None if filters is None else [filters[i] for i in chosen]
            parts.append((chosen, self.rank(self.prefill([prompts[i] for i in chosen]), k, own, beams, bonus)))
        return Ranking.joined(len(prompts), k, parts)

    def batches(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Yield batches of the indices of `prompts`, sorted by length so that a batch needs little padding."""
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(prompts), self.config.batch_size):
            yield by_length[start : start + self.config.batch_size]

    @abstractmethod
    def prefill(self, prompts: list[Sequence[int]]) -> PrefilledBatch:
        """Run the model on a batch of prompts. The result can be ranked any number of times, one after the other."""

    def rank(
        self,
        prefilled: PrefilledBatch,
        k: int,
        filters: Sequence[Filter] | None = None,
        beams: int | None = None,
        offsets: "Offsets | None" = None,
    ) -> Ranking:
        """Rank the k best items of each prompt of a batch; the arguments are those of `search`."""
        width = min(self._width(k, beams or self.config.beams), self.trie.n_items)
        restriction = None if filters is None else Restriction(self.trie, filters)
        leaves, values = self._leaves(prefilled, width, restriction, offsets)
        living = values > DEAD
        invalid = living & (leaves < 0)
        values = np.where(living & (leaves >= 0), values, -np.inf)
        items, scores = self._items(leaves, values, k, restriction, offsets)
        return Ranking(items, scores, width, int(living.sum()), int(invalid.sum()), int(invalid[:, 0].sum()))

    def _width(self, k: int, beams: int) -> int:
        """The number of leaves to search for; each has at least one allowed item."""
        return max(k, beams)

    @abstractmethod
    def _leaves(
        self,
        prefilled: PrefilledBatch,
        width: int,
        restriction: Restriction | None,
        offsets: "Offsets | None",
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best leaves of one batch, best first: nodes int64 [B, K'] (-1: no item), scores float32 [B, K']."""

    def _items(
        self,
        leaves: np.ndarray,
        scores: np.ndarray,
        k: int,
        restriction: Restriction | None,
        offsets: "Offsets | None",
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items at the leaves [B, K']: rows int64 [B, k], padded by -1, and scores, padded by -inf."""
        found = np.full((len(leaves), k), -1, dtype=np.int64)
        values = np.full((len(leaves), k), -np.inf, dtype=np.float32)
        beams = np.flatnonzero(np.isfinite(scores))
        leaf = torch.from_numpy(leaves.reshape(-1)[beams]).to(self.device)
        rows, at = ranges(self.trie.firsts[-1][leaf].long(), self.trie.firsts[-1][leaf + 1].long())
        items = self.trie.order[at].long().cpu().numpy()
        beams = beams[rows.cpu().numpy()]
        request, score = beams // leaves.shape[1], scores.reshape(-1)[beams]
        if offsets is not None:
            score = score + offsets.items[items]
        for row in range(len(leaves)):
            mine = slice(*np.searchsorted(request, [row, row + 1]))
            own, value = items[mine], score[mine]
            if restriction is not None:
                keep = restriction.filters[row].allows(own)
                own, value = own[keep], value[keep]
            best = np.argsort(-value, kind="stable")[:k]
            found[row, : len(best)], values[row, : len(best)] = own[best], value[best]
        return found, values


class Offsets:
    """Numbers that are added to the items' scores, and the largest of them below each node of the trie.

    Args:
        trie: of the catalogue.
        items: float [N], one number per item.

    Raises:
        ValueError: `items` does not have exactly one finite number per item.
    """

    def __init__(self, trie: ItemTrie, items: np.ndarray) -> None:
        self.items = np.asarray(items, np.float32)
        if self.items.shape != (trie.n_items,) or not np.isfinite(self.items).all():
            raise ValueError(f"offsets: expected {trie.n_items} finite numbers, one per item")
        ordered = self.items[trie.order.cpu().numpy()]
        self.bounds = [
            torch.from_numpy(np.maximum.reduceat(ordered, firsts[:-1].cpu().numpy())).to(trie.device)
            for firsts in trie.firsts
        ]
        """Per level, float32 [nodes]: the largest offset among the items below each node."""
