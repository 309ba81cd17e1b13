"""Whether a model keeps examples that share a row apart."""

import inspect
from typing import TYPE_CHECKING

import torch

from llmrec.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def check_packing(model: "PreTrainedModel") -> None:
    """Run two rows that hold a second example behind different first ones: its logits must agree to the last bit.

    Raises:
        UserError: they don't, or the model takes no positions.
    """
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    if not takes_positions or not _apart(model):
        raise UserError(
            f"--train.packing true: {type(model).__name__} with {model.config._attn_implementation} attention lets "
            "examples that share a row see each other; set --train.packing false."
        )


def _apart(model: "PreTrainedModel") -> bool:
    tokens = torch.tensor([[0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 1, 0]], device=model.device)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]] * 2, device=model.device)
    training = model.training
    logits = model.eval()(input_ids=tokens, position_ids=positions, use_cache=False).logits
    model.train(training)
    return torch.equal(logits[0, 3:], logits[1, 3:])
