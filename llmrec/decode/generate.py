"""Beam search by `generate`, for models that do not support a tree attention mask; and the choice of the search.

The trie is a logits processor: it sets the score of a token to -inf if the prefix with that token is not the prefix of
an item. It works on all beams of all requests at once; the only Python loop is over the levels of the prefix.

    constraint = TrieConstraint(trie, vocabulary, prompt_length=ids.shape[1], beams=20)
    model.generate(ids, num_beams=20, max_new_tokens=trie.levels, logits_processor=[constraint])

    search = make_search(model, vocabulary, trie, config)    # a TreeSearch if the model supports it
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor

from llmrec.console import get_logger
from llmrec.decode.config import DecodeConfig
from llmrec.decode.context import Context
from llmrec.decode.filters import Restriction
from llmrec.decode.search import BeamSearch, Offsets, PrefilledBatch, codes_of, require_numbers
from llmrec.decode.tree import ExactSearch, TreeSearch
from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie
from llmrec.model.tokens import ItemVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = get_logger(__name__)


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
        with self.search.arithmetic():
            return self.search.run(*self.search._padded(self.prompts))[:, -1]


class GenerateSearch(BeamSearch):
    """Beam search by `generate` with the trie as logits processor. Only scoring vocab, constraint trie, no offsets."""

    auto_scoring = "vocab"

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
        """The key/value cache of all prompt tokens but the last, one row per request; None for prompts of one token."""
        if ids.shape[1] < 2:
            return None
        cache = DynamicCache(config=self.model.config)
        self.run(ids[:, :-1], mask[:, :-1], cache)
        return cache

    def run(self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        """The hidden states [B, T, H] of token ids int64 [B, T]; `mask`, int64 [B, T], is 0 for padding."""
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
    """Context manager: ignore the generation config of the base model, such as its sampling, temperature or penalty."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3}
"""Largest difference of log-probabilities between a tree and plain sequences that counts as a rounding error."""


def make_search(
    model: "PreTrainedModel",
    vocabulary: ItemVocabulary,
    trie: ItemTrie,
    config: DecodeConfig,
    pad_token_id: int = 0,
    is_cold: np.ndarray | None = None,
) -> BeamSearch:
    """Make the fastest search that is correct for `model`; arguments as in `BeamSearch`.

    A trial on a few tokens decides: `TreeSearch` if the model supports a tree attention mask, else `GenerateSearch`.

    Raises:
        UserError: the model needs `GenerateSearch`, which does not support the scoring or constraint of `config`; or
            the vocabulary does not fit the trie or the model.
    """
    check_fit(model, vocabulary, trie)
    search = TreeSearch(model, vocabulary, trie, config, pad_token_id, is_cold)
    reason = check_tree_support(search)
    if reason is None:
        return search
    if config.scoring not in ("auto", "vocab") or config.constraint != "trie":
        raise UserError(
            f"--decode.scoring {config.scoring} with --decode.constraint {config.constraint}: this model takes no tree "
            f"attention mask ({reason}), and `generate` offers vocab with trie only; set these."
        )
    log.warning("This model takes no tree attention mask (%s): decoding by generate, many times slower.", reason)
    return GenerateSearch(model, vocabulary, trie, config, pad_token_id)


def make_exact(search: BeamSearch) -> ExactSearch:
    """Make the exact search for the same model, vocabulary, trie and configuration as `search`.

    Raises:
        UserError: `search` is a `GenerateSearch`, or its constraint is not trie.
    """
    if not isinstance(search, TreeSearch):
        raise UserError("--exact: this model takes no tree attention mask, which the exact search needs; leave it out.")
    if search.config.constraint != "trie":
        raise UserError(
            f"--exact searches among the items; --decode.constraint {search.config.constraint} has others: use trie."
        )
    return ExactSearch(search.model, search.vocabulary, search.trie, search.config, search.pad_token_id, search.is_cold)


def check_fit(model: Any, vocabulary: ItemVocabulary, trie: ItemTrie) -> None:
    """Raise UserError unless trie and vocabulary have equal level sizes and the model has rows for all item tokens."""
    if vocabulary.level_sizes != list(trie.level_sizes):
        raise UserError(
            f"The trie has levels of {list(trie.level_sizes)} codes, the model's item tokens {vocabulary.level_sizes}; "
            "they belong to different tokenizers."
        )
    rows = model.get_output_embeddings().weight.shape[0]
    if int(vocabulary.all_ids.max()) >= rows:
        raise UserError(
            f"The item tokens go up to id {int(vocabulary.all_ids.max())}, but the model has rows for {rows} tokens."
        )


@torch.inference_mode()
def check_tree_support(search: TreeSearch) -> str | None:
    """Test whether the model computes the right log-probabilities under a tree attention mask.

    The test runs two beams of one or two tokens after a padded prompt, as a tree and as plain sequences.

    Returns:
        None if the results agree within `TOLERANCE`; else the reason why the model can't be used with such a mask.
    """
    tokens = search.head.tokens[:2]
    prompt = [search.pad_token_id, *(int(level[0]) for level in tokens)]
    ids = torch.tensor([[0, *prompt]], device=search.device)
    spelt = torch.stack([level[[0, -1]] for level in tokens], dim=1)  # [2 beams, depth]
    try:
        context = Context(search.body, ids, (torch.arange(ids.shape[1], device=search.device) > 0).long()[None])
        context.start()
        alive = torch.ones((1, 2), dtype=torch.bool, device=search.device)
        ancestors = torch.empty((1, 2, 0), dtype=torch.int64, device=search.device)
        for level, column in enumerate(spelt.T):
            depth = torch.full((1, 2), level, device=search.device)
            hidden, ancestors = context.extend(column[None], depth, ancestors, alive)
        tree = search.head.vocabulary(hidden[0])
        plain = torch.cat([ids[:, 1:].expand(2, -1), spelt], dim=1)
        expected = search.model(plain).logits[:, -1].float().log_softmax(-1)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:120]
    if torch.isnan(expected).any():
        return None  # the tree is not the cause; the search will report the level
    difference = float((tree - expected).abs().max())
    return None if difference <= TOLERANCE[search.dtype] else f"its log-probabilities differ by {difference:.2g}"
