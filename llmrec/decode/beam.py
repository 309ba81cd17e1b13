"""Batched beam search over the catalogue: prompts in, ranked items out, on top of `generate`.

The prompt is run through the model once per request; its key/value cache is then repeated for the beams, so
that `generate` pays only for the codes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig

from llmrec.decode.config import DecodeConfig
from llmrec.decode.constraint import TrieConstraint
from llmrec.device import resolve_device, resolve_dtype
from llmrec.vocab.tokens import ItemVocabulary
from llmrec.vocab.trie import ItemTrie

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# `generate` starts all beams but the first at -1e9: a beam near that value is one that never came alive.
DEAD = -1e8


@dataclass(frozen=True)
class Ranking:
    """The best items per request, best first.

    Attributes:
        items: int64 [B, K], rows of the catalogue, -1 where fewer than K were found.
        scores: float32 [B, K], log-probability of the semantic ID given the prompt, -inf where there is no item.
            Items that share a semantic ID share its score.
        beams: how many beams came alive, over all requests.
        invalid: how many of them spell no item of the catalogue; the constraint is there to make this 0.
    """

    items: np.ndarray
    scores: np.ndarray
    beams: int
    invalid: int


@contextmanager
def plain_generation(model: "PreTrainedModel") -> Iterator[None]:
    """No sampling, temperature or penalty from the generation config that came with the base model."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class BeamSearch:
    """Trie-constrained beam search with a causal language model.

    With as many beams as there are items the result is the exact ranking of the whole catalogue.

    Args:
        model: any causal language model of transformers, or a PEFT model around it, with rows for the item tokens.
        vocabulary: the item tokens.
        trie: of the catalogue.
        config: beams, batch size, arithmetic, device.
        pad_token_id: to pad prompts on the left; its positions are masked, any token serves.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        vocabulary: ItemVocabulary,
        trie: ItemTrie,
        config: DecodeConfig,
        pad_token_id: int = 0,
    ) -> None:
        self.device = resolve_device(config.device)
        self.dtype = resolve_dtype(config.dtype, self.device)
        model = model.to(self.device).eval()
        # A PEFT model's adapter sits in the layers of its base model; its wrapper would compute the prompt's logits.
        self.model = getattr(model, "get_base_model", lambda: model)()
        self.vocabulary = vocabulary
        self.trie = trie.to(self.device)
        self.config = config
        self.pad_token_id = pad_token_id

    def search(
        self,
        prompts: Sequence[Sequence[int]],
        k: int,
        excluded: Sequence[np.ndarray] | None = None,
        beams: int | None = None,
    ) -> Ranking:
        """Rank items for each prompt.

        Args:
            prompts: token ids per request, of any lengths >= 1.
            k: answers per request; the search uses max(k, beams) beams, at most one per item.
            excluded: per request, rows of items that must not come out. Exact: k distinct other items are
                returned whenever there are k.
            beams: instead of the configured number.

        Returns:
            The k best items per request.
        """
        # At least 2: of a single beam `generate` makes a greedy search, which reports no score.
        width = max(2, min(max(k, beams or self.config.beams), len(self.trie.order)))
        items = np.full((len(prompts), k), -1, dtype=np.int64)
        scores = np.full((len(prompts), k), -np.inf, dtype=np.float32)
        alive = invalid = 0
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(prompts), self.config.batch_size):
            chosen = by_length[start : start + self.config.batch_size]
            gone = None if excluded is None else [excluded[i] for i in chosen]
            leaves, leaf_scores = self._leaves([prompts[i] for i in chosen], width, gone)
            alive += int((leaf_scores > DEAD).sum())
            invalid += int(((leaf_scores > DEAD) & (leaves < 0)).sum())
            for row, request in enumerate(chosen):
                found, value = self._items(
                    leaves[row], leaf_scores[row], None if excluded is None else excluded[request]
                )
                items[request, : min(k, len(found))] = found[:k]
                scores[request, : min(k, len(found))] = value[:k]
        return Ranking(items, scores, alive, invalid)

    @torch.inference_mode()
    def _leaves(
        self, prompts: list[Sequence[int]], width: int, excluded: list[np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Leaf nodes int64 [B, width] and log-probabilities float32 [B, width], best first, of one batch."""
        ids, mask = self._padded(prompts)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            cache = self._prefill(ids, mask)
            if cache is not None:
                cache.batch_repeat_interleave(width)
            constraint = TrieConstraint(
                self.trie,
                self.vocabulary,
                self.model.get_output_embeddings().weight.shape[0],
                ids.shape[1],
                width,
                excluded,
            )
            with plain_generation(self.model):
                output = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    past_key_values=cache,
                    logits_processor=[constraint],
                    generation_config=GenerationConfig(
                        do_sample=False,
                        num_beams=width,
                        num_return_sequences=width,
                        max_new_tokens=self.trie.levels,
                        length_penalty=0.0,
                        pad_token_id=self.pad_token_id,
                        return_dict_in_generate=True,
                        output_scores=True,
                    ),
                )
        leaves = constraint.nodes(output.sequences).reshape(len(prompts), width)
        scores = output.sequences_scores.reshape(len(prompts), width).float()
        return leaves.cpu().numpy(), scores.cpu().numpy()

    def _padded(self, prompts: list[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Left-padded token ids and attention mask, int64 [B, T]."""
        length = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), length), self.pad_token_id, dtype=torch.int64)
        mask = torch.zeros((len(prompts), length), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.int64)
            mask[row, length - len(prompt) :] = 1
        return ids.to(self.device), mask.to(self.device)

    def _prefill(self, ids: torch.Tensor, mask: torch.Tensor) -> DynamicCache | None:
        """The cache of all prompt tokens but the last, one row per request; None for prompts of one token."""
        if ids.shape[1] < 2:
            return None
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        self.model.base_model(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=positions[:, :-1],
            past_key_values=cache,
            use_cache=True,
        )
        return cache

    def _items(
        self, leaves: np.ndarray, scores: np.ndarray, excluded: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Items and scores of one request's beams; dead beams go, shared leaves give all their items."""
        found: list[np.ndarray] = []
        values: list[np.ndarray] = []
        for leaf, score in zip(leaves, scores, strict=True):
            if score <= DEAD:
                break
            if leaf < 0:
                continue
            items = self.trie.items(leaf).cpu().numpy()
            if excluded is not None and len(items) > 1:
                items = items[~np.isin(items, excluded)]
            found.append(items)
            values.append(np.full(len(items), score, dtype=np.float32))
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return np.concatenate(found), np.concatenate(values)
