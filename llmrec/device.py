"""Which device and which arithmetic a configuration's `auto` means."""

import torch

from llmrec.errors import UserError


def resolve_device(device: str) -> torch.device:
    """The device that a `device` field names; auto is a GPU when there is one.

    Raises:
        UserError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.empty(0, device=device).device
        if found.type == "meta":  # has no memory, so nothing can be computed there
            raise RuntimeError("no memory")
    except (RuntimeError, AssertionError):  # the latter from a torch built without the device
        raise UserError(f"device {device!r:.80} can't be used here; say auto, cpu, or the name of a GPU.") from None
    return found


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The arithmetic that a `dtype` field names; auto is bfloat16 where the hardware multiplies it faster."""
    if dtype != "auto":
        return torch.bfloat16 if dtype == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
