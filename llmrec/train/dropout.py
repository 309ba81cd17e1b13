"""Dropout for models whose configuration offers none on their residual stream, such as Qwen3 and Llama."""

from typing import TYPE_CHECKING, Any

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
