"""Dropout while a model trains: of its blocks, of its own dropout layers, or of single codes."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from llmrec.errors import UserError
from llmrec.model.architecture import encoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def drop_out(model: "PreTrainedModel", rate: float) -> "BlockDropout | OwnDropout":
    """Dropout at `rate` until its `remove` is called: of an encoder-decoder by its own layers, else by its blocks.

    Raises:
        UserError: as `BlockDropout`.
    """
    return BlockDropout(model, rate) if encoder_of(model) is None else OwnDropout(model, rate)


class OwnDropout:
    """Sets the rate of all dropout that a model has: T5 drops out embeddings, attention weights, the inner layer and
    the output of blocks, and the last hidden states.

    Args:
        model: gets the rate until `remove` is called.
        rate: share of activations set to 0 in training, in [0, 1).
    """

    def __init__(self, model: "PreTrainedModel", rate: float) -> None:
        self.before: list[tuple[Any, str, float]] = []
        for module in model.modules():
            name = "p" if isinstance(module, nn.Dropout) else "dropout"  # an attention layer has a number
            own = getattr(module, name, None)
            if isinstance(own, float | int):
                self.before.append((module, name, own))
                setattr(module, name, rate)

    def remove(self) -> None:
        """Leave the model as it was."""
        for module, name, rate in self.before:
            setattr(module, name, rate)


class BlockDropout:
    """Drops out token embeddings and the outputs of attention and feed-forward blocks while a model trains.

    Args:
        model: gets hooks, which `remove` takes away.
        rate: share of activations set to 0, in [0, 1).

    Raises:
        UserError: the model has no modules named self_attn, attn or mlp.
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
    """Hides random item tokens in the input while a model trains: their embeddings become 0. Labels do not change.

    Args:
        model: gets hooks, which `remove` takes away.
        token_ids: int64 [M], the item tokens that may be hidden.
        rate: share of these tokens in the input that is hidden, in [0, 1).
    """

    def __init__(self, model: "PreTrainedModel", token_ids: np.ndarray, rate: float) -> None:
        self.rate, self.model = rate, model
        rows = model.get_input_embeddings().weight
        self.hideable = torch.zeros(len(rows), dtype=torch.bool)
        self.hideable[torch.from_numpy(token_ids)] = True
        # An encoder-decoder has an embedding in each part, with the same rows.
        inputs = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is rows]
        self.hooks = [embedding.register_forward_hook(self._hide) for embedding in inputs]

    def _hide(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not self.model.training:
            return output
        tokens = inputs[0]
        self.hideable = self.hideable.to(tokens.device)
        hidden = self.hideable[tokens] & (torch.rand(tokens.shape, device=tokens.device) < self.rate)
        return output.masked_fill(hidden[..., None], 0)

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self.hooks:
            hook.remove()
