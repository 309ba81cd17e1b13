"""The trie as a logits processor for `generate`: what is not the prefix of a real item gets -inf.

Vectorised over all beams of all requests: the only Python loop runs over the levels of the prefix.

    constraint = TrieConstraint(trie, vocabulary, prompt_length=ids.shape[1], beams=20)
    model.generate(ids, num_beams=20, max_new_tokens=trie.levels, logits_processor=[constraint])
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor

from llmrec.decode.filters import Restriction
from llmrec.decode.search import BeamSearch, Offsets, PrefilledBatch, codes_of, require_numbers
from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie
from llmrec.model.tokens import ItemVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TrieConstraint(LogitsProcessor):
    """Keeps the scores of tokens that continue the semantic ID of an allowed item.

    Args:
        trie: of the catalogue.
        vocabulary: of the same levels.
        prompt_length: T, the padded length of the prompts; what follows is the semantic ID.
        beams: K, rows per request.
        restriction: of the batch's requests; None allows every item.
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
        """The trie node of each row's generated prefix: int64 [R], -1 where the prefix is not one."""
        node = torch.zeros(len(input_ids), dtype=torch.int64, device=input_ids.device)
        for level, tokens in enumerate(input_ids[:, self.prompt_length :].T):
            node = self.trie.step(level, node, codes_of(tokens, self.token_of_code[level], self.code_of_token))
        return node

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [R, V] of the next token, -inf but for children of each row's prefix; R = requests x beams.

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
    """A batch of prompts that `generate` runs anew each time."""

    def __init__(self, prompts: list[Sequence[int]], search: "GenerateSearch") -> None:
        self.prompts = prompts
        self.search = search

    @property
    @torch.inference_mode()
    def hidden(self) -> torch.Tensor:
        with self.search.arithmetic():
            return self.search.run(*self.search._padded(self.prompts))[:, -1]


class GenerateSearch(BeamSearch):
    """`generate` under the trie's logits processor; scoring vocab, constraint trie, no offsets."""

    auto_scoring = "vocab"

    def open(self, prompts: list[Sequence[int]]) -> "PrefilledPrompts":
        return PrefilledPrompts(prompts, self)

    def _leaves(
        self, prefilled: PrefilledBatch, width: int, restriction: Restriction | None, offsets: Offsets | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if offsets is not None:
            raise UserError("--boost: score offsets need a model that takes tree attention masks; leave them out.")
        # At least 2: of a single beam `generate` makes a greedy search, which reports no score.
        return self._generate(prefilled.prompts, max(2, width), restriction)

    def arithmetic(self) -> torch.autocast:
        """The configured one, for what runs within."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @torch.inference_mode()
    def _generate(
        self, prompts: list[Sequence[int]], width: int, restriction: Restriction | None
    ) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = self._padded(prompts)
        with self.arithmetic():
            cache = self._prefill(ids, mask)
            if cache is not None:
                cache.batch_repeat_interleave(width)
            constraint = TrieConstraint(self.trie, self.vocabulary, ids.shape[1], width, restriction)
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

    def _prefill(self, ids: torch.Tensor, mask: torch.Tensor) -> DynamicCache | None:
        """The cache of all prompt tokens but the last, one row per request; None for prompts of one token."""
        if ids.shape[1] < 2:
            return None
        cache = DynamicCache(config=self.model.config)
        self.run(ids[:, :-1], mask[:, :-1], cache)
        return cache

    def run(self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        """The hidden states [B, T, H] of token ids int64 [B, T]; what is padding, `mask` says with 0."""
        output = self.model.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state


@contextmanager
def plain_generation(model: "PreTrainedModel") -> Iterator[None]:
    """No sampling, temperature or penalty from the generation config that came with the base model."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
