"""Attention of a few queries to many masked keys, without copies of the keys for grouped query heads."""

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

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
