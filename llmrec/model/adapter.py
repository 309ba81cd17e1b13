"""The parts that are added to a base model: embedding rows for the item tokens, a LoRA adapter, a dense head.

M item tokens, V old tokens, hidden size H. `Start` functions set the initial values of the M new rows: random values
like the old rows, the mean of the old rows, the words of the items, or the vectors of the quantizer.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from llmrec.errors import UserError
from llmrec.model.config import AdapterConfig, InitRows

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmrec.quantize.base import Quantizer
    from llmrec.quantize.tokenizer import ItemTokenizer

Start = Callable[[torch.Tensor, int, torch.Generator], torch.Tensor]
"""A function (old rows float32 [V, H], M, random generator) -> initial rows float32 [M, H] of the item tokens."""


NEAR = 0.01
"""Scale of the noise of `near_mean`, in standard deviations of the old rows; it makes the new rows distinct."""


REFERENCES = 64
"""Maximum number of semantic IDs on which `code_vectors` measures the effect of a code."""


def row_start(
    method: InitRows,
    tokenizer: "PreTrainedTokenizerBase",
    item_ids: np.ndarray,
    items: "ItemTokenizer",
    texts: Sequence[str],
    seed: int,
) -> Start:
    """The function that `add_item_rows` calls to initialise the new rows.

    Args:
        method: as in `BaseConfig.init_rows`.
        tokenizer: already contains the item tokens.
        item_ids: int64 [M], the token ids of the item tokens, in level order.
        items: the fitted item tokenizer; `text` and `codebook` read its codes, `codebook` also its quantizer.
        texts: N item texts, in the order of `items`; only `text` reads them.
        seed: for `codebook`: the seed of the sample of semantic IDs and of the random projection.
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
    """Draw the rows from a diagonal Gaussian with the mean and the deviations of the old rows."""
    return old.mean(0) + _noise(old, count, generator) * old.std(0)


def near_mean(old: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """The mean of the old rows plus a little noise (`NEAR`)."""
    return old.mean(0) + NEAR * _noise(old, count, generator) * old.std(0)


def copied(ids: np.ndarray) -> Start:
    """Copies of the old rows `ids`, int64 [M]."""
    return lambda old, count, generator: old[torch.from_numpy(ids).to(old.device)]


def _noise(old: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count, old.shape[1], generator=generator).to(old.device)


def _from_words(shares: torch.Tensor) -> Start:
    """The rows `shares` (sparse [M, V]) @ old rows [V, H]; where a row of `shares` is empty, a row of `gaussian`."""

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
    """For each code, the share of each old token in the texts of the items with this code.

    Each item has the same weight, however long its text is.

    Args:
        tokenizer: already contains the item tokens.
        item_ids: int64 [M], the token ids of the item tokens, in level order.
        codes: int [N, L], the semantic IDs of the items.
        level_sizes: the L numbers of codes per level; their sum is M.
        texts: N item texts.

    Returns:
        Sparse float32 [M, V], the V old tokens in order of their ids. A row sums to 1, or to 0 if no item with this
        code has a text.
    """
    from scipy.sparse import csr_matrix
    from sklearn.preprocessing import normalize

    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    item = np.repeat(np.arange(len(encoded)), [len(ids) for ids in encoded])
    token = np.concatenate([np.array(ids, np.int64) for ids in encoded])
    words = csr_matrix((np.ones(len(token), np.float32), (item, token)), (len(texts), len(tokenizer)))
    words = words[:, np.setdiff1d(np.arange(len(tokenizer)), item_ids)]  # a text can contain the name of an item token
    first = np.cumsum([0, *level_sizes[:-1]])
    row, under = (codes + first).ravel(), np.repeat(np.arange(len(codes)), codes.shape[1])
    holds = csr_matrix((np.ones(len(row), np.float32), (row, under)), (sum(level_sizes), len(codes)))
    shares = normalize(holds @ normalize(words, "l1"), "l1").tocoo()
    places = torch.from_numpy(np.stack([shares.row, shares.col]))
    return torch.sparse_coo_tensor(places, shares.data, shares.shape, check_invariants=True).coalesce()


def code_vectors(quantizer: "Quantizer", codes: np.ndarray, seed: int) -> list[np.ndarray]:
    """The effect of each code on the reconstruction, for each level of the quantizer.

    The effect of code c at level l is the mean of decode(semantic ID with code c at level l), taken over at most
    `REFERENCES` semantic IDs of the catalogue, minus the mean over all codes of the level. This works for any
    quantizer. If the reconstruction is a sum of codebook vectors, the effects are these vectors minus their mean.

    Args:
        quantizer: fitted, with L levels.
        codes: int [N, L or more], the semantic IDs of the items; levels after L (dedup) are ignored.
        seed: of the sample of semantic IDs.

    Returns:
        L arrays, float32 [C_l, D], each of mean 0. All values are 0 for a level whose codes do not change the
        reconstruction, such as a level of random codes.
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
    """Random projections of the `vectors` [C_l, D] of each level, scaled to the mean and deviations of the old rows.

    The codes of a level of zeros, and of a dedup level, carry no content: their rows come from `gaussian`.
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
    """Resize the token embeddings of `model` to `rows` rows and initialise the rows of the item tokens.

    The rows of old tokens stay the same, bit for bit. Some checkpoints have padding rows after the last token of the
    tokenizer; these are removed, because a softmax over them gives probability to rows without a token, and because
    peft's `AutoPeftModelForCausalLM` resizes to the same number of rows.

    Args:
        model: any language model, with tied or untied embeddings; changed in place.
        item_ids: int64 [M], the token ids of the item tokens, all new.
        rows: number of rows afterwards: `len(tokenizer)`.
        seed: of the random generator that `start` receives.
        start: makes the new rows; called for the input embedding and, if it is untied, for the output head.
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
    """Last names of the modules that hold token rows: the input embedding and, if it is untied, the output head."""
    modules = {id(module): _last(name) for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = [modules[id(embedding)]]
    if head is not None and head.weight is not embedding.weight:
        names.append(modules[id(head)])
    return names


def all_linear(model: "PreTrainedModel") -> list[str]:
    """The modules that `targets: all-linear` stands for: the linear layers without the head, routers and experts.

    peft would adapt the stacked matrices of experts, which allow no dropout. Fused kernels of Mamba read the weights of
    its layers past their adapters, except for the first layer, in_proj.
    """
    from transformers.pytorch_utils import Conv1D

    modules, head = dict(model.named_modules()), model.get_output_embeddings()
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D) and module is not head}
    # peft takes a layer for one of the experts if it has the last name of one.
    experts = {_last(name) for name in linear if "expert" in name}
    return sorted(
        name
        for name in linear
        if _last(name) not in experts
        and "Router" not in type(modules[name]).__name__
        and (_last(name) == "in_proj" or not hasattr(modules[name.rpartition(".")[0]], "A_log"))
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def with_adapter(model: "PreTrainedModel", item_ids: np.ndarray, config: AdapterConfig) -> "PeftModel":
    """`model` with a LoRA adapter (arXiv 2106.09685) and trainable rows for the item tokens.

    Args:
        model: with the rows of the item tokens, see `add_item_rows`.
        item_ids: int64 [M], the token ids of the item tokens.
        config: layers, rank, scale and dropout of the adapter.

    Raises:
        UserError: peft can't adapt these layers.
    """
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=all_linear(model) if config.targets == "all-linear" else config.targets,
        use_rslora=config.rslora,
        use_dora=config.dora,
        trainable_token_indices={name: item_ids.tolist() for name in embedding_names(model)},
    )
    try:
        adapted = get_peft_model(model, lora)
    except ValueError as error:
        raise UserError(
            f"--train.lora.targets: peft can't adapt these layers of {type(model).__name__}: {error}; name others, or "
            "use --train.method full."
        ) from None
    return _ready(adapted)


def with_rows(model: "PreTrainedModel", item_ids: np.ndarray) -> "PeftModel":
    """`model` with trainable rows for the item tokens; all other weights are frozen.

    Call `merge_and_unload` to write the trained rows into the embedding matrix.

    Args:
        model: with the rows of the item tokens, see `add_item_rows`.
        item_ids: int64 [M], the token ids of the item tokens.
    """
    from peft import TrainableTokensConfig, get_peft_model

    config = TrainableTokensConfig(
        task_type="CAUSAL_LM", token_indices=item_ids.tolist(), target_modules=embedding_names(model)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # no harm: peft ties these rows too
        adapted = get_peft_model(model, config)
    return _ready(adapted)


def reopened(adapted: "PeftModel") -> "PeftModel":
    """A PEFT model, loaded or trained before, that trains its adapter further."""
    adapted.set_adapter("default")  # its parameters require gradients again
    adapted.peft_config["default"].inference_mode = False
    return _ready(adapted)


def _ready(adapted: "PeftModel") -> "PeftModel":
    from llmrec.model.rows import use_token_rows

    # peft saves the trained rows by themselves. By default it also saves the whole resized matrix: switch that off.
    adapted.save_pretrained = partial(type(adapted).save_pretrained, adapted, save_embedding_layers=False)
    use_token_rows(adapted)
    return adapted


def merged(model: Any) -> "PreTrainedModel":
    """The model inside a PEFT model, with the adapter merged into its weights; any other model itself."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


TEMPERATURE = 0.07
"""Temperature of the dense head, as in LIGER (arXiv 2411.18814): score = cosine / 0.07."""


WIDTH = 256
"""Width of the hidden layer of the MLP that maps text vectors into the common space."""


class DenseHead(nn.Module):
    """Maps hidden states [..., H] and text vectors [..., D] into a common space of unit vectors [..., d].

    Args:
        hidden: H, hidden size of the language model.
        text: D, dimensions of the text vectors.
        dim: d, dimensions of the common space.
    """

    def __init__(self, hidden: int, text: int, dim: int = 128) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, dim)
        self.item = nn.Sequential(nn.Linear(text, WIDTH), nn.ReLU(), nn.Linear(WIDTH, dim))
        self.straight = nn.Linear(text, dim, bias=False)

    def queries(self, hidden: torch.Tensor) -> torch.Tensor:
        """Unit vectors [..., d] of hidden states [..., H]."""
        return F.normalize(self.query(hidden), dim=-1)

    def items(self, vectors: torch.Tensor, own: torch.Tensor | None = None) -> torch.Tensor:
        """Unit vectors [..., d] of items, from their text vectors [..., D] and their own vectors [..., d], if any."""
        made = self.straight(vectors) + self.item(vectors)
        return F.normalize(made if own is None else made + own, dim=-1)

    @property
    def text_dims(self) -> int:
        """D, the dimensions of the text vectors."""
        first = self.item[0]
        assert isinstance(first, nn.Linear)
        return first.in_features
