"""Dropout that a model's configuration does not offer: on the residual stream of Qwen3, Llama and the like, and of the
codes that it reads."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from llmrec.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BlockDropout:
    """Drops out token embeddings and the outputs of attention and feed-forward blocks while a model trains.

    Args:
        model: hooked in place, until `remove`.
        rate: share of activations set to 0, in [0, 1).

    Raises:
        UserError: the model has no modules of the names that such blocks go by.
    """

    def __init__(self, model: "PreTrainedModel", rate: float) -> None:
        blocks = [m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] in ("self_attn", "attn", "mlp")]
        if not blocks:
            raise UserError(
                f"--train.dropout {rate}: {type(model).__name__} has no modules named self_attn, attn or mlp to "
                "drop out; set --train.dropout 0."
            )
        self.rate, self.model = rate, model
        self.hooks = [m.register_forward_hook(self._drop) for m in [model.get_input_embeddings(), *blocks]]

    def _drop(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self._drop(module, inputs, output[0]), *output[1:])
        return nn.functional.dropout(output, self.rate, self.model.training)

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self.hooks:
            hook.remove()


class CodeDropout:
    """Hides codes that a model reads while it trains: their embeddings become 0. What is to be said stays the same.

    Args:
        model: hooked in place, until `remove`.
        token_ids: int64 [M], the item tokens that may be hidden.
        rate: share of them, in [0, 1).
    """

    def __init__(self, model: "PreTrainedModel", token_ids: np.ndarray, rate: float) -> None:
        self.rate, self.model = rate, model
        embedding = model.get_input_embeddings()
        self.hideable = torch.zeros(embedding.weight.shape[0], dtype=torch.bool)
        self.hideable[torch.from_numpy(token_ids)] = True
        self.hook = embedding.register_forward_hook(self._hide)

    def _hide(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not self.model.training:
            return output
        tokens = inputs[0]
        self.hideable = self.hideable.to(tokens.device)
        hidden = self.hideable[tokens] & (torch.rand(tokens.shape, device=tokens.device) < self.rate)
        return output.masked_fill(hidden[..., None], 0)

    def remove(self) -> None:
        """Leave the model as it was."""
        self.hook.remove()
