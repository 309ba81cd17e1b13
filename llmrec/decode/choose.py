"""Chooses the search for a model: with a tree attention mask, by `generate`, or none. Trials on a few tokens decide.

A trial compares log-probabilities with those of plain forward passes. How much they may differ is measured, too: by how
much errors of one unit in the last place of each layer's output change the plain ones. So one rule fits float32,
bfloat16 and models of any depth.

    search = make_search(model, vocabulary, trie, config)    # a TreeSearch if the model supports it
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmrec.console import get_logger
from llmrec.decode.config import NEED_TREE, DecodeConfig
from llmrec.decode.context import Body, ItemHead
from llmrec.decode.encoded import open_context
from llmrec.decode.exact import ExactSearch
from llmrec.decode.generate import GenerateSearch
from llmrec.decode.search import BeamSearch
from llmrec.decode.tree import TreeSearch
from llmrec.device import on_device
from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie
from llmrec.model.architecture import unknown_window, unwrapped
from llmrec.model.forward import answer_logits
from llmrec.model.quantized import shared_weights
from llmrec.model.rounding import distance, rounded_otherwise
from llmrec.model.tokens import ItemVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = get_logger(__name__)


FLOOR = 1e-4
"""A difference of log-probabilities (root mean square) that is never held against a search."""
FACTOR = 2
"""A search may differ by this multiple of the measured rounding errors. Sound ones differ by up to 1.3 times them."""


@dataclass(frozen=True)
class Support:
    """How a model can be decoded.

    Attributes:
        no_tree: why it can't be decoded with a tree attention mask; None if it can.
        prefills: whether `GenerateSearch` can read a prompt once for all of its beams.
    """

    no_tree: str | None
    prefills: bool = True


def make_search(
    model: "PreTrainedModel",
    vocabulary: ItemVocabulary,
    trie: ItemTrie,
    config: DecodeConfig,
    pad_token_id: int = 0,
    is_cold: np.ndarray | None = None,
) -> BeamSearch:
    """The fastest search that is correct for `model`; arguments as in `BeamSearch`, errors as in `check_decoding`."""
    model = on_device(model, config.device)
    support = check_decoding(model, vocabulary, trie, config, pad_token_id)
    if support.no_tree is None:
        return TreeSearch(model, vocabulary, trie, config, pad_token_id, is_cold)
    return GenerateSearch(model, vocabulary, trie, config, pad_token_id, support.prefills)


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
    check_rows(model, vocabulary.all_ids)


def check_rows(model: Any, ids: np.ndarray) -> None:
    """Raise UserError unless the model has rows for the tokens `ids`, int64 [M], that llmrec added."""
    rows = model.get_output_embeddings().weight.shape[0]
    if int(ids.max()) >= rows:
        raise UserError(f"The tokens of items go up to id {int(ids.max())}, but the model has rows for {rows} tokens.")


def check_decoding(
    model: "PreTrainedModel", vocabulary: ItemVocabulary, trie: ItemTrie, config: DecodeConfig, pad_token_id: int = 0
) -> Support:
    """Find out how `model` can be decoded as `config` says. The trials take some forward passes of a few tokens.

    Raises:
        UserError: the vocabulary does not fit the trie or the model; neither search gives the log-probabilities of the
            model; or it needs `GenerateSearch`, which does not support the scoring, constraint or ranking of `config`.
    """
    check_fit(model, vocabulary, trie)
    support = find_support(model, vocabulary, trie, pad_token_id)
    if support.no_tree is None:
        return support
    if config.scoring not in ("auto", "vocab") or config.constraint != "trie":
        raise UserError(
            f"--decode.scoring {config.scoring} with --decode.constraint {config.constraint}: this model takes no tree "
            f"attention mask ({support.no_tree}), and `generate` offers vocab with trie only; set these."
        )
    if config.ranking in NEED_TREE:
        raise UserError(
            f"--decode.ranking {config.ranking}: this model takes no tree attention mask ({support.no_tree}); choose "
            "beam, quota, dense or liger."
        )
    log.warning("This model takes no tree attention mask (%s): generate decodes it, many times slower", support.no_tree)
    return support


def find_support(model: "PreTrainedModel", vocabulary: ItemVocabulary, trie: ItemTrie, pad_token_id: int) -> Support:
    """Try the searches on two prompts of different lengths, on the device and in the precision of the model's weights.

    The model stays as it is: the trial has a copy of its modules, which shares the weights.

    Raises:
        UserError: no search gives the log-probabilities of plain forward passes.
    """
    own = copy.deepcopy(unwrapped(model), shared_weights(model)).eval()
    tokens = np.random.default_rng(0).choice(vocabulary.all_ids, 8).tolist()
    prompts = [tokens, tokens[:SHARED] + tokens[5:]]
    if window := unknown_window(own):
        no_tree: str | None = f"its layers have their own {window}"
    else:
        no_tree = _trouble(own, partial(_tree_trial, own, vocabulary, prompts, pad_token_id))
    if no_tree is None:
        return Support(None)
    config = DecodeConfig(device=str(own.device), dtype="float32")  # no autocast
    for prefills in (True, False):
        search = GenerateSearch(own, vocabulary, trie, config, pad_token_id, prefills)
        trouble = _trouble(own, partial(_generate_trial, search, prompts))
        if trouble is None:
            return Support(no_tree, prefills)
    raise UserError(
        f"--base.model: {type(own).__name__} can't be decoded: it takes no tree attention mask ({no_tree}), and "
        f"`generate` fails, too ({trouble}); choose another model."
    )


SHARED = 2
"""Number of tokens that the two prompts of a trial begin with."""

Trial = tuple[torch.Tensor, Callable[[], torch.Tensor]]
"""Log-probabilities by a search, and a function that finds the same ones by plain forward passes."""


@torch.inference_mode()
def _trouble(model: "PreTrainedModel", trial: Callable[[], Trial]) -> str | None:
    """Why a search can't be used: its error, or how much it differs from plain forward passes; None if it can."""
    try:
        found, plain = trial()
        expected = plain()
        with rounded_otherwise(model):
            rounding = distance(plain(), expected)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the code of a model that was not made for this may raise anything
        return " ".join(f"{type(error).__name__}: {error}".split())[:120]
    if torch.isnan(expected).any():
        return None  # the weights are to blame, not the search, which will name the level
    difference = distance(found.to(expected.device), expected)
    return None if difference <= max(FLOOR, FACTOR * rounding) else f"its log-probabilities differ by {difference:.2g}"


def _tree_trial(model: "PreTrainedModel", vocabulary: ItemVocabulary, prompts: list[list[int]], pad: int) -> Trial:
    """Two beams of one or two tokens after each prompt: log-probabilities float32 [beams, positions, V]."""
    body = Body(model, model.get_output_embeddings().weight.dtype)  # shares the weights
    head = ItemHead(body.model, vocabulary, "vocab", body.dtype)
    spelt = torch.stack([level[[0, -1]] for level in head.tokens[:2]], dim=1)  # [2 beams, depth]
    context = open_context(body, prompts, pad, shared=SHARED)
    hidden = [context.start().expand(-1, 2, -1)]
    running = torch.ones((len(prompts), 2), dtype=torch.bool, device=spelt.device)
    ancestors = torch.empty((len(prompts), 2, 0), dtype=torch.int64, device=spelt.device)
    for level, column in enumerate(spelt.T):
        depth = torch.full_like(running, level, dtype=torch.int64)
        ran, ancestors = context.extend(column.expand_as(depth), depth, ancestors, running)
        hidden.append(ran)
    found = head.vocabulary(torch.stack(hidden, dim=2).flatten(0, 2)).view(2 * len(prompts), len(hidden), -1)
    sequences = [[*prompt, *beam] for prompt in prompts for beam in spelt.tolist()]
    return found, lambda: _plain(model, sequences, len(hidden))


def _generate_trial(search: GenerateSearch, prompts: list[list[int]]) -> Trial:
    """The best two items of each prompt: their log-probabilities, float32 [items]."""
    ranking = search.search(prompts, 2)
    rows, places = np.nonzero(ranking.items >= 0)
    nodes = search.trie.paths(torch.from_numpy(ranking.items[rows, places]).to(search.device))
    codes = np.stack([search.trie.codes(level, node).cpu().numpy() for level, node in enumerate(nodes)], axis=1)
    tokens = search.vocabulary.token_ids(codes)
    sequences = [[*prompts[row], *item[:-1]] for row, item in zip(rows, tokens.tolist(), strict=True)]
    spelt = torch.from_numpy(tokens).to(search.device)[:, :, None]

    def plain() -> torch.Tensor:
        return _plain(search.model, sequences, search.trie.levels).gather(2, spelt).sum((1, 2))

    return torch.from_numpy(ranking.scores[rows, places]).to(search.device), plain


def _plain(model: "PreTrainedModel", sequences: Sequence[Sequence[int]], last: int) -> torch.Tensor:
    """Log-probabilities float32 [n, last, V] at the last positions of n sequences, without padding or cache."""
    found: dict[int, torch.Tensor] = {}
    for length in {len(ids) for ids in sequences}:
        rows = [row for row, ids in enumerate(sequences) if len(ids) == length]
        ids = torch.tensor([sequences[row] for row in rows], device=model.device)
        logits = answer_logits(model, *ids.split([length - last + 1, last - 1], dim=1))
        found |= dict(zip(rows, logits.float().log_softmax(-1), strict=True))
    return torch.stack([found[row] for row in range(len(sequences))])
