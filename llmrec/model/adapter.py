"""What is added to a base model: rows for the item tokens, a LoRA adapter, a dense head.

A new row starts at the mean of the old rows with noise, or from the words or the vectors of its items.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, assert_never

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from llmrec.model.config import AdapterConfig, InitRows

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmrec.quantize.base import Quantizer
    from llmrec.quantize.tokenizer import ItemTokenizer

Start = Callable[[torch.Tensor, int, torch.Generator], torch.Tensor]
"""(old rows float32 [V, H], M, a generator) -> new rows float32 [M, H] of the M item tokens."""


NEAR = 0.01
"""Deviations of the old rows by which rows that start at their mean differ, lest they stay the same."""


REFERENCES = 64
"""Semantic IDs in which the effect of a code on the reconstruction is measured."""


def row_start(
    method: InitRows,
    tokenizer: "PreTrainedTokenizerBase",
    item_ids: np.ndarray,
    items: "ItemTokenizer",
    texts: Sequence[str],
    seed: int,
) -> Start:
    """How `add_item_rows` is to start the rows.

    Args:
        method: of `BaseConfig.init_rows`.
        tokenizer: with the item tokens.
        item_ids: int64 [M], their ids, in level order.
        items: fitted; its codes, and for `codebook` its quantizer.
        texts: N texts, of the items in the order of `items`; read for `text` only.
        seed: of the projection of `codebook`.
    """
    match method:
        case "gaussian":
            return gaussian
        case "mean":
            return near_mean
        case "text":
            return _from_words(word_shares(tokenizer, item_ids, items.codes, items.level_sizes, texts))
        case "codebook":
            return _from_vectors(code_vectors(items.quantizer, items.codes, seed), seed)
        case _:
            assert_never(method)


def gaussian(old: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Drawn from the diagonal Gaussian of the old rows: distinct, and of the scale the model is used to."""
    return old.mean(0) + _noise(old, count, generator) * old.std(0)


def near_mean(old: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """The mean of the old rows, and a little noise."""
    return old.mean(0) + NEAR * _noise(old, count, generator) * old.std(0)


def _noise(old: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count, old.shape[1], generator=generator).to(old.device)


def _from_words(shares: torch.Tensor) -> Start:
    """The mean of the old rows by `shares` (sparse [M, V]); `gaussian` where a row of these is empty."""

    def start(old: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        known = (torch.sparse.sum(shares, dim=1).to_dense() > 0).to(old.device)
        return torch.where(known[:, None], shares.to(old.device) @ old, gaussian(old, count, generator))

    return start


def word_shares(
    tokenizer: "PreTrainedTokenizerBase",
    item_ids: np.ndarray,
    codes: np.ndarray,
    level_sizes: Sequence[int],
    texts: Sequence[str],
) -> torch.Tensor:
    """Which old tokens the items under each code are told with: sparse float32 [M, V], V old tokens in their order.

    Each item counts the same, however long its text; a row adds up to 1, or to 0 where no item under it has text.
    """
    from scipy.sparse import csr_matrix
    from sklearn.preprocessing import normalize

    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    item = np.repeat(np.arange(len(encoded)), [len(ids) for ids in encoded])
    token = np.concatenate([np.array(ids, np.int64) for ids in encoded])
    words = csr_matrix((np.ones(len(token), np.float32), (item, token)), (len(texts), len(tokenizer)))
    words = words[:, np.setdiff1d(np.arange(len(tokenizer)), item_ids)]  # a text may hold what reads as an item token
    first = np.cumsum([0, *level_sizes[:-1]])
    row, under = (codes + first).ravel(), np.repeat(np.arange(len(codes)), codes.shape[1])
    holds = csr_matrix((np.ones(len(row), np.float32), (row, under)), (sum(level_sizes), len(codes)))
    shares = normalize(holds @ normalize(words, "l1"), "l1").tocoo()
    places = torch.from_numpy(np.stack([shares.row, shares.col]))
    return torch.sparse_coo_tensor(places, shares.data, shares.shape, check_invariants=True).coalesce()


def code_vectors(quantizer: "Quantizer", codes: np.ndarray, seed: int) -> list[np.ndarray]:
    """What each code of each level of content adds to a reconstruction: float32 [C_l, D] per level, of mean 0.

    Measured on at most `REFERENCES` of the items' semantic IDs (`codes` [N, L or more]) with the code put in its
    place, so that any quantizer has them. Where the reconstruction is a sum of codes these are the codebooks, but for
    an offset per level. Of a level whose codes make no difference, such as random ones, they are 0.
    """
    rng = np.random.default_rng(seed)
    some = codes[rng.permutation(len(codes))[:REFERENCES], : quantizer.levels]
    vectors = []
    for level, size in enumerate(quantizer.level_sizes):
        every = np.repeat(some, size, axis=0)
        every[:, level] = np.tile(np.arange(size), len(some))
        effect = quantizer.decode(every).reshape(len(some), size, -1).mean(axis=0)
        scale = np.abs(effect).max()
        effect -= effect.mean(axis=0)
        vectors.append(effect if np.abs(effect).max() > 1e-5 * scale else np.zeros_like(effect))
    return vectors


def _from_vectors(vectors: Sequence[np.ndarray], seed: int) -> Start:
    """Each level's `vectors` [C_l, D] in a random projection, with the mean and deviations of the old rows.

    `gaussian` for codes that stand for nothing: of a level of zeros, and the ranks of a dedup level.
    """

    def start(old: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        rows = gaussian(old, count, generator)
        projection = torch.randn(vectors[0].shape[1], old.shape[1], generator=torch.Generator().manual_seed(seed))
        first = 0
        for level in vectors:
            if level.any():
                spread = torch.from_numpy(level).float() @ projection
                scaled = spread / spread.std(0, correction=0)
                rows[first : first + len(level)] = old.mean(0) + scaled.to(old.device) * old.std(0)
            first += len(level)
        return rows

    return start


def add_item_rows(
    model: "PreTrainedModel", item_ids: np.ndarray, rows: int, seed: int, start: Start = gaussian
) -> None:
    """Give `model` exactly `rows` token rows (the tokenizer's length) and initialise those of the item tokens.

    Rows of old tokens keep their bits. Rows past the tokenizer's length, which some checkpoints carry as padding, go:
    a softmax over them would give probability to nothing, and peft's `AutoPeftModelForCausalLM` resizes to this same
    length.

    Args:
        model: any causal language model, tied or untied; changed in place.
        item_ids: int64 [M], ids of the item tokens, all new.
        rows: number of rows afterwards, `len(tokenizer)`.
        seed: of the random part of `start`.
        start: old rows -> new rows; called for the input embedding and, unless it is tied, for the head.
    """
    model.resize_token_embeddings(rows, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    old = torch.ones(rows, dtype=torch.bool)
    old[torch.from_numpy(item_ids)] = False
    weights = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not weights[0]:
        weights.append(head.weight)
    with torch.no_grad():
        for weight in weights:
            known = weight[old.to(weight.device)].float()
            new = start(known, len(item_ids), generator)
            weight[torch.from_numpy(item_ids).to(weight.device)] = new.to(weight.dtype)


def embedding_names(model: "PreTrainedModel") -> list[str]:
    """Last names of the modules that hold token rows: the input embedding and, unless it is tied, the head."""
    modules = {id(module): name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = [modules[id(embedding)]]
    if head is not None and head.weight is not embedding.weight:
        names.append(modules[id(head)])
    return names


def with_adapter(model: "PreTrainedModel", item_ids: np.ndarray, config: AdapterConfig) -> "PeftModel":
    """`model` with a LoRA adapter (arXiv 2106.09685) and trainable rows for the item tokens.

    Args:
        model: its token rows already resized and initialised.
        item_ids: int64 [M], ids of the item tokens.
        config: where the adapter sits, its rank, scale and dropout.
    """
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=config.targets,
            use_rslora=config.rslora,
            use_dora=config.dora,
            trainable_token_indices={name: item_ids.tolist() for name in embedding_names(model)},
        ),
    )
    # The rows that train are saved as such; peft would add the whole matrix because it was resized.
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def with_rows(model: "PreTrainedModel", item_ids: np.ndarray) -> "PeftModel":
    """`model`, frozen but for the rows int64 [M] of the item tokens; `merge_and_unload` puts them in their places."""
    from peft import TrainableTokensConfig, get_peft_model

    config = TrainableTokensConfig(
        task_type="CAUSAL_LM", token_indices=item_ids.tolist(), target_modules=embedding_names(model)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # it ties these rows all the same
        adapted = get_peft_model(model, config)
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


TEMPERATURE = 0.07
"""LIGER's: a cosine counts 1 / 0.07."""


WIDTH = 256
"""Of the hidden layer between a text vector and its place in the space."""


class DenseHead(nn.Module):
    """Puts hidden states [..., H] and text vectors [..., D] into one space of unit vectors [..., d].

    Args:
        hidden: H.
        text: D.
        dim: d.
    """

    def __init__(self, hidden: int, text: int, dim: int = 128) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, dim)
        self.item = nn.Sequential(nn.Linear(text, WIDTH), nn.ReLU(), nn.Linear(WIDTH, dim))
        self.straight = nn.Linear(text, dim, bias=False)

    def queries(self, hidden: torch.Tensor) -> torch.Tensor:
        """Unit vectors of hidden states."""
        return F.normalize(self.query(hidden), dim=-1)

    def items(self, vectors: torch.Tensor) -> torch.Tensor:
        """Unit vectors of items, from the vectors of their texts."""
        return F.normalize(self.straight(vectors) + self.item(vectors), dim=-1)

    @property
    def text_dims(self) -> int:
        """D, dimensions of the text vectors."""
        first = self.item[0]
        assert isinstance(first, nn.Linear)
        return first.in_features
