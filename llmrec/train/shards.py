"""A model whose weights training spreads over the processes, as FSDP2 and ZeRO-3 do, and how it gets whole again."""

import copy
import os
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import Trainer


def spread_over_processes() -> bool:
    """Whether `accelerate launch` was told so."""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    return fsdp or (deepspeed and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3")


def empty_copy(model: nn.Module) -> nn.Module:
    """`model` with weights of its own on the CPU that hold nothing yet, tied where its are; buffers as they are."""
    parameters = {
        id(p): nn.Parameter(torch.empty_like(p, device="cpu"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    whole = copy.deepcopy(model, parameters)
    for module in whole.modules():
        module._forward_hooks.clear()  # dropout, which belongs to the training
    return whole


def gather(trainer: "Trainer", whole: nn.Module) -> nn.Module:
    """Put the trained weights into `whole`, an `empty_copy`: on the first process, which alone writes."""
    state = trainer.accelerator.get_state_dict(trainer.deepspeed if trainer.is_deepspeed_enabled else trainer.model)
    if trainer.is_world_process_zero():
        whole.load_state_dict(state)
    return whole
