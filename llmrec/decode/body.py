"""The model as decoding runs it: in its own arithmetic, and no further than the prompts need."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmrec.decode.attention import group_heads

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_last_token_only: ContextVar[bool] = ContextVar("_last_token_only", default=False)


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
