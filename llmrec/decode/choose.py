"""Which search a model gets: the tree where it takes one, `generate` where it doesn't."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmrec.console import get_logger
from llmrec.decode.config import DecodeConfig
from llmrec.decode.context import Context
from llmrec.decode.exact import ExactSearch
from llmrec.decode.generate import GenerateSearch
from llmrec.decode.search import BeamSearch
from llmrec.decode.tree import TreeSearch
from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie
from llmrec.model.tokens import ItemVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = get_logger(__name__)
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3}
"""Largest difference of log-probabilities between a tree and plain sequences that passes for rounding."""


def make_search(
    model: "PreTrainedModel",
    vocabulary: ItemVocabulary,
    trie: ItemTrie,
    config: DecodeConfig,
    pad_token_id: int = 0,
    is_cold: np.ndarray | None = None,
) -> BeamSearch:
    """The fastest search that is exact for `model`, told apart by a trial on a few tokens; arguments as `BeamSearch`.

    Raises:
        UserError: the model can only go through `generate`, and `config` asks for what that does not offer; or the
            vocabulary does not fit the trie or the model.
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
    """The exact search over what `search` was made for.

    Raises:
        UserError: it goes through `generate`, or not by the trie.
    """
    if not isinstance(search, TreeSearch):
        raise UserError("--exact: this model takes no tree attention mask, which the exact search needs; leave it out.")
    if search.config.constraint != "trie":
        raise UserError(
            f"--exact searches among the items; --decode.constraint {search.config.constraint} has others: use trie."
        )
    return ExactSearch(search.model, search.vocabulary, search.trie, search.config, search.pad_token_id, search.is_cold)


def check_fit(model: Any, vocabulary: ItemVocabulary, trie: ItemTrie) -> None:
    """Raise UserError unless the trie's codes are the vocabulary's and the model has rows for all of them."""
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
    """Why the model can't be trusted with a tree attention mask; None if it can.

    Two beams of one or two tokens after a padded prompt are run as a tree and as plain sequences.
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
        return None  # not the tree's doing; the search will name the level
    difference = float((tree - expected).abs().max())
    return None if difference <= TOLERANCE[search.dtype] else f"its log-probabilities differ by {difference:.2g}"
