"""Attention of a few queries to many masked keys, without copies of the keys for grouped query heads."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llmrec.decode.config import Scoring
from llmrec.model.tokens import ItemVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "llmrec_grouped"


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers' "sdpa" computes of query [B, G x h, Q, D] and key, value [B, h, S, D], by its interface.

    The G query heads of a key head (Ainslie et al. 2023, arXiv 2305.13245) become G x Q queries of that head; "sdpa"
    copies keys and values G times instead when there is a mask.

    Returns:
        [B, Q, G x h, D], and None for the weights.
    """
    groups = query.shape[1] // key.shape[1]
    biased = kwargs.get("position_bias") is not None
    if groups == 1 or attention_mask is None or attention_mask.shape[1] > 1 or biased:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    batch, heads, length, width = query.shape
    output = F.scaled_dot_product_attention(
        query.reshape(batch, heads // groups, groups * length, width),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1),
        dropout_p=kwargs.get("dropout", 0.0),
        scale=scaling,
    )
    return output.reshape(batch, heads, length, -1).transpose(1, 2).contiguous(), None


def group_heads(model: "PreTrainedModel") -> None:
    """Make `model` attend by `grouped_attention` if it attends by "sdpa"."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, grouped_attention)


AttentionMaskInterface.register(NAME, sdpa_mask)


_last_token_only: ContextVar[bool] = ContextVar("_last_token_only", default=False)


class Body:
    """A model as decoding runs it.

    Attributes:
        model: a copy of the modules in the decoder's arithmetic, see `decoding_copy`.
        dtype: of its weights.
        width: H, of its hidden states.
        window: positions that a sliding attention sees; None if every layer sees all.
        layer_types: kinds of attention that its layers have, empty where the configuration names none.
    """

    def __init__(self, model: "PreTrainedModel", dtype: torch.dtype) -> None:
        self.model = decoding_copy(model, dtype)
        self.dtype = dtype
        self.width = int(self.model.get_output_embeddings().weight.shape[1])
        config = self.model.config.get_text_config()
        self.window: int | None = getattr(config, "sliding_window", None)
        self.layer_types = set(getattr(config, "layer_types", None) or ())


def decoding_copy(model: "PreTrainedModel", dtype: torch.dtype) -> "PreTrainedModel":
    """A copy of the modules of `model`, whose own state nothing done to the copy changes.

    Parameters that are `dtype` already are shared with `model`, others converted once. Buffers keep their type: rotary
    frequencies lose too much in bfloat16.
    """
    parameters = {id(parameter): _as(parameter, dtype) for parameter in model.parameters()}
    own = copy.deepcopy(model, parameters)
    group_heads(own)
    blocks = [module for module in own.base_model.children() if isinstance(module, nn.ModuleList)]
    feed_forward = getattr(blocks[0][-1], "mlp", None) if blocks else None
    if feed_forward is not None:
        feed_forward.register_forward_pre_hook(_keep_last_token)
    return own


@contextmanager
def last_token_only() -> Iterator[None]:
    """Within, only the last hidden state of each row is right: the last layer's feed-forward, which nothing else and
    no cache depends on, computes that one alone."""
    token = _last_token_only.set(True)
    try:
        yield
    finally:
        _last_token_only.reset(token)


def _keep_last_token(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return (inputs[0][:, -1:], *inputs[1:]) if _last_token_only.get() else None


def _as(parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    if parameter.dtype == dtype or not parameter.is_floating_point():
        return parameter
    return nn.Parameter(parameter.detach().to(dtype), requires_grad=False)


BLOCK = {False: 2**20, True: 2**26}
"""Logits computed at a time where only their sum matters, on a CPU (4 MB) and on a GPU (256 MB)."""


class ItemHead:
    """The output head of a model, as far as item tokens go.

    Args:
        model: causal language model; its head's bias and soft cap are honoured.
        vocabulary: the item tokens.
        scoring: as above.
        dtype: of the product with the whole vocabulary. Codes' own logits are float32: 8 bits would tie them.
    """

    def __init__(
        self, model: "PreTrainedModel", vocabulary: ItemVocabulary, scoring: Scoring, dtype: torch.dtype
    ) -> None:
        head = model.get_output_embeddings()
        self.scoring = scoring
        self.cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self.weight = head.weight.detach().to(dtype)
        self.bias = head.bias.detach().to(dtype) if getattr(head, "bias", None) is not None else None
        tokens = [torch.from_numpy(ids).to(self.weight.device) for ids in vocabulary.ids]
        self.tokens = tokens
        self._rows = [head.weight.detach()[ids].float() for ids in tokens]
        self._biases = [None if self.bias is None else head.bias.detach()[ids].float() for ids in tokens]

    def vocabulary(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of all tokens, float32 [R, V], after `hidden` [R, H]."""
        return self._logits(hidden, self.weight, self.bias).log_softmax(-1)

    def level(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """Scores of the level's codes, float32 [R, C]: log-probabilities, but for `catalogue` yet to be normalised."""
        logits = self._logits(hidden, self._rows[level], self._biases[level])
        if self.scoring == "level":
            return logits.log_softmax(-1)
        if self.scoring == "vocab":
            return logits - self._normaliser(hidden)[:, None]
        return logits

    def _normaliser(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-sum-exp of all tokens' logits, float32 [R], by blocks of the vocabulary that stay in the caches."""
        block = max(1, BLOCK[hidden.device.type == "cuda"] // len(hidden))
        biases = [None] * len(self.weight) if self.bias is None else self.bias.split(block)
        parts = [
            self._logits(hidden, rows, bias).logsumexp(-1)
            for rows, bias in zip(self.weight.split(block), biases, strict=False)
        ]
        return torch.stack(parts).logsumexp(0)

    def _logits(self, hidden: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        logits = F.linear(hidden.to(rows.dtype), rows, bias).float()
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)
