"""Trainable rows of the item tokens beside a frozen embedding and a frozen output head.

peft trains the rows of some tokens by writing them into a copy of the whole matrix [V, H] in each forward pass; the
backward pass makes a gradient of that size. `TokenRows` computes the same without either. The rows keep peft's names
and files, so peft alone can load, merge and train them.

V tokens, of which M are item tokens; hidden size H.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import nn
from torch.nn import functional as F


class TokenRows(TrainableTokensLayer):
    """An embedding or output head whose item tokens have rows of their own, with the results of peft's layer.

    A bias of the head counts, too (Phi, GPT-J); peft leaves it out until it merges the rows.

    Attributes:
        ids: int64 [M], the item tokens.
        place: int64 [V], the row of each item token; -1 for other tokens.
        split: whether FSDP or ZeRO-3 splits the weights over processes.
    """

    ids: torch.Tensor
    place: torch.Tensor
    split = False

    def forward_adapters(self, x: torch.Tensor, active_adapters: list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Embeddings [..., H] of token ids [...], or logits [..., V] of hidden states [..., H]."""
        if self.disable_adapters or self.merged or not active_adapters:
            unchanged: torch.Tensor = super().forward_adapters(x, active_adapters, *args, **kwargs)
            return unchanged
        [name] = active_adapters
        rows, frozen = self.trainable_tokens_delta[name], self.base_layer(x, *args, **kwargs)
        if isinstance(self.base_layer, nn.Embedding):
            return self._embeddings(x, rows, frozen)
        bias = self.base_layer.bias
        logits = F.linear(x, rows.to(x.dtype), None if bias is None else bias[self.ids])
        return frozen.index_copy_(-1, self.ids, logits.to(frozen.dtype))

    def get_merged_weights(self, active_adapters: list[str]) -> torch.Tensor:
        """What the layer shows as its `weight`, [V, H]: the frozen matrix with the trained rows in place.

        While the matrix is split over processes, it is shown itself: accelerate finds tied matrices by identity.
        """
        weight: torch.Tensor = self.base_layer.weight if self.split else super().get_merged_weights(active_adapters)
        return weight

    def _embeddings(self, tokens: torch.Tensor, rows: torch.Tensor, frozen: torch.Tensor) -> torch.Tensor:
        place = self.place[tokens]
        new = F.embedding(place.clamp(min=0), rows).to(frozen.dtype)
        scale = self._get_embed_scale()  # Gemma multiplies in the layer itself
        if scale is not None:
            new = new * scale.to(new.dtype)
        return torch.where((place >= 0)[..., None], new, frozen)


def use_token_rows(adapted: nn.Module) -> None:
    """Let every layer of peft with trainable rows compute as `TokenRows`, in place.

    Args:
        adapted: a PEFT model whose rows belong to the adapter `default`.
    """
    for layer in cast(Iterable[Any], adapted.modules()):
        if type(layer) is TrainableTokensLayer:
            weight = layer.base_layer.weight
            ids = torch.tensor(layer.token_indices["default"], device=weight.device)
            place = torch.full((weight.shape[0],), -1, device=weight.device)
            place[ids] = torch.arange(len(ids), device=weight.device)
            layer.__class__ = TokenRows
            layer.register_buffer("ids", ids, persistent=False)
            layer.register_buffer("place", place, persistent=False)


def split_token_rows(model: nn.Module) -> None:
    """Prepare the layers of `use_token_rows` in `model` for FSDP or ZeRO-3, which split weights over processes."""
    for layer in model.modules():
        if isinstance(layer, TokenRows):
            layer.split = True
