"""Beam search by `generate`, for models that do not support a tree attention mask.

The trie is a logits processor: it sets the score of a token to -inf if the prefix with that token is not the prefix of
an item. It works on all beams of all requests at once; the only Python loop is over the levels of the prefix.

    constraint = TrieConstraint(trie, vocabulary, prompt_length=ids.shape[1], beams=20)
    model.generate(ids, num_beams=20, max_new_tokens=trie.levels, logits_processor=[constraint])
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor

from llmrec.decode.config import DecodeConfig
from llmrec.decode.filters import Restriction
from llmrec.decode.search import BeamSearch, Offsets, PrefilledBatch, codes_of, left_padded, require_numbers
from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie
from llmrec.model.architecture import cache_name, decoder_of, encoder_of, start_token
from llmrec.model.forward import answer_states, right_padded
from llmrec.model.tokens import ItemVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TrieConstraint(LogitsProcessor):
    """Logits processor: keeps the scores of tokens that continue the semantic ID of an allowed item, others are -inf.

    Args:
        trie: of the catalogue.
        vocabulary: the item tokens, of the same levels as the trie.
        prompt_length: T, the padded length of the prompts; the semantic ID begins after it.
        beams: K, rows per request.
        restriction: the allowed items of each request of the batch; None allows every item.
    """

    def __init__(
        self,
        trie: ItemTrie,
        vocabulary: ItemVocabulary,
        prompt_length: int,
        beams: int,
        restriction: Restriction | None = None,
    ) -> None:
        self.trie = trie
        self.prompt_length = prompt_length
        self.beams = beams
        self.restriction = restriction
        self.token_of_code = [torch.from_numpy(ids).to(trie.device) for ids in vocabulary.ids]
        self.code_of_token = torch.from_numpy(vocabulary.code_of_token(int(vocabulary.all_ids.max()) + 1))
        self.code_of_token = self.code_of_token.to(trie.device)

    def nodes(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The trie node of each row's generated prefix: int64 [R], -1 where it is not the prefix of an item."""
        node = torch.zeros(len(input_ids), dtype=torch.int64, device=input_ids.device)
        for level, tokens in enumerate(input_ids[:, self.prompt_length :].T):
            node = self.trie.step(level, node, codes_of(tokens, self.token_of_code[level], self.code_of_token))
        return node

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Set the scores of all tokens to -inf that do not lead to a child of the row's node.

        Args:
            input_ids: int64 [R, T + level], R = requests x beams.
            scores: float [R, V], of the next token.

        Returns:
            float [R, V].

        Raises:
            NotNumbersError: a score that is kept is NaN.
        """
        level = input_ids.shape[1] - self.prompt_length
        parents = self.nodes(input_ids)
        if self.restriction is None:
            rows, children = self.trie.children(level, parents)
        else:
            requests = torch.arange(len(parents), device=parents.device) // self.beams
            rows, children = self.restriction.children(level, requests, parents)
        tokens = self.token_of_code[level][self.trie.codes(level, children)]
        kept = scores[rows, tokens]
        require_numbers(kept, level, self.trie.levels)
        constrained = torch.full_like(scores, -torch.inf)
        constrained[rows, tokens] = kept
        return constrained


class PrefilledPrompts(PrefilledBatch):
    """A batch of prompts. No cache is kept: each ranking runs the model on them again."""

    def __init__(self, prompts: list[Sequence[int]], search: "GenerateSearch") -> None:
        self.prompts = prompts
        self.search = search

    @property
    @torch.inference_mode()
    def hidden(self) -> torch.Tensor:
        nothing = torch.empty((len(self.prompts), 0), dtype=torch.int64, device=self.search.device)
        with self.search.arithmetic():
            return answer_states(self.search.model, self.prompts, nothing, self.search.pad_token_id)[:, 0]


class GenerateSearch(BeamSearch):
    """Beam search by `generate` with the trie as logits processor. Only scoring vocab, constraint trie, no offsets.

    Args:
        model: as for `BeamSearch`, like all other arguments.
        prefills: read each prompt once and repeat its cache for each beam; else `generate` reads it once per beam.
    """

    auto_scoring = "vocab"

    def __init__(
        self,
        model: "PreTrainedModel",
        vocabulary: ItemVocabulary,
        trie: ItemTrie,
        config: DecodeConfig,
        pad_token_id: int = 0,
        prefills: bool = True,
    ) -> None:
        super().__init__(model, vocabulary, trie, config, pad_token_id)
        self.prefills = prefills

    def prefill(self, prompts: list[Sequence[int]]) -> "PrefilledPrompts":
        return PrefilledPrompts(prompts, self)

    def _leaves(
        self, prefilled: PrefilledBatch, width: int, restriction: Restriction | None, offsets: Offsets | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if offsets is not None:
            raise UserError("--boost: score offsets need a model that takes tree attention masks; leave them out.")
        # At least 2: with a single beam, `generate` does a greedy search, which returns no scores.
        return self._generate(prefilled.prompts, max(2, width), restriction)

    def arithmetic(self) -> torch.autocast:
        """Context manager: autocast to the configured dtype; float32 is left as it is."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @torch.inference_mode()
    def _generate(
        self, prompts: list[Sequence[int]], width: int, restriction: Restriction | None
    ) -> tuple[np.ndarray, np.ndarray]:
        padded = left_padded if encoder_of(self.model) is None else right_padded
        ids, mask = padded(prompts, self.pad_token_id, self.device)
        with self.arithmetic(), plain_generation(self.model):
            start = answer_start(self.model, ids)
            constraint = TrieConstraint(self.trie, self.vocabulary, start, width, restriction)
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
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
                **self._prefill(ids, mask, width),
            )
        leaves = constraint.nodes(output.sequences).reshape(len(prompts), width)
        scores = output.sequences_scores.reshape(len(prompts), width).float()
        return leaves.cpu().numpy(), scores.cpu().numpy()

    def _prefill(self, ids: torch.Tensor, mask: torch.Tensor, width: int) -> dict[str, DynamicCache]:
        """The argument of `generate` with the cache of all prompt tokens but the last, `width` rows per request.

        Empty without `prefills`, for prompts of one token, and for an encoder-decoder, of which `generate` runs the
        encoder once per prompt.
        """
        if not self.prefills or ids.shape[1] < 2 or encoder_of(self.model) is not None:
            return {}
        cache = DynamicCache(config=self.model.config)
        before = mask[:, :-1]
        decoder_of(self.model)(
            input_ids=ids[:, :-1],
            attention_mask=before,
            position_ids=(before.cumsum(-1) - 1).clamp(min=0),
            use_cache=True,
            **{cache_name(self.model): cache},
        )
        cache.reorder_cache(torch.arange(len(ids), device=self.device).repeat_interleave(width))
        return {cache_name(self.model): cache}


def answer_start(model: "PreTrainedModel", ids: torch.Tensor) -> int:
    """The column at which the answers begin in what `generate` returns for prompts int64 [B, T].

    That is after the prompt, or after the start token of an encoder-decoder.
    """
    return ids.shape[1] if encoder_of(model) is None else 1


@contextmanager
def plain_generation(model: "PreTrainedModel") -> Iterator[None]:
    """Context manager: ignore the generation config of the base model, such as its sampling, temperature or penalty."""
    own = model.generation_config
    start = None if encoder_of(model) is None else start_token(model)
    model.generation_config = GenerationConfig(decoder_start_token_id=start)
    try:
        yield
    finally:
        model.generation_config = own
