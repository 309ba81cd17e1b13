"""Grouped-query attention without copies, under a name that transformers knows.

group_heads(model)    # a model with "sdpa" attention gets "llmrec_grouped", with the same results
"""

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
    """Grouped-query attention without copies of keys and values; same interface and result as transformers' "sdpa".

    G query heads share one key head (Ainslie et al. 2023, arXiv 2305.13245). This function treats them as G x Q queries
    of that key head. If there is a mask, "sdpa" copies keys and values G times instead.

    Args:
        module: the attention layer.
        query: [B, G x h, Q, D].
        key: [B, h, S, D].
        value: [B, h, S, D].
        attention_mask: [B, 1, Q, S], additive or bool; for None or one mask per head, "sdpa" itself runs.
        scaling: factor of the scores; None: 1 / sqrt(D).
        kwargs: further arguments of the interface.

    Returns:
        [B, Q, G x h, D], and None for the attention weights.
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
    """Switch `model` to `grouped_attention` if it uses "sdpa"."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
