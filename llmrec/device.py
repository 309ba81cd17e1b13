"""Finds the device and the dtype for the configuration, also for `auto`, and this process among several."""

import time
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmrec.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState


def process_state() -> "PartialState":
    """This process among those of `accelerate launch`, or alone."""
    from accelerate import PartialState

    # Without `cpu=True` on a machine without accelerators, every process would be the main process.
    return PartialState(cpu=not torch.accelerator.is_available())


def resolve_device(device: str) -> torch.device:
    """The device that a `device` field names; auto is a GPU if there is one, else the CPU.

    Raises:
        UserError: this machine has no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.empty(0, device=device).device
        if found.type == "meta":  # the meta device has no memory and computes nothing
            raise RuntimeError("no memory")
    except (RuntimeError, AssertionError):  # AssertionError: this torch was built without the device
        raise UserError(f"device {device!r:.80} can't be used here; say auto, cpu, or the name of a GPU.") from None
    return found


def on_device(model: Any, device: str) -> Any:
    """`model` on the device that a `device` field names. A model that a device map has placed stays where it is."""
    return model if hasattr(model, "hf_device_map") else model.to(resolve_device(device))


def device_of(layer: nn.Module) -> torch.device:
    """The device of a layer's weights."""
    return next(layer.parameters()).device


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype that a `dtype` field names; auto is bfloat16 if the device multiplies it faster, else float32."""
    if dtype != "auto":
        return torch.bfloat16 if dtype == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if device.type == "cpu" and bfloat16_is_faster() else torch.float32


FASTER = 1.3
"""A CPU computes in bfloat16 if it multiplies it at least this many times as fast as float32. Those with units for it
reach 2 and more, but some that name such units have too few of them."""


@cache
def bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies matrices in bfloat16 faster. One with AMX does. One with AVX-512 bf16 is tried, once
    in a process. All others emulate bfloat16."""
    if torch.cpu._is_amx_tile_supported():
        return True
    # A version of torch without this function can't tell, and float32 stays.
    has_units = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return has_units and _seconds(torch.float32) > FASTER * _seconds(torch.bfloat16)


def _seconds(dtype: torch.dtype) -> float:
    """The shortest CPU time of ten products of matrices, so that other work on the machine does not decide."""
    one = torch.ones(512, 512, dtype=dtype)
    times = []
    for _ in range(10):
        started = time.process_time()
        one @ one
        times.append(time.process_time() - started)
    return min(times)
