"""Which device and which arithmetic a configuration's `auto` means."""

import torch


def resolve_device(device: str) -> torch.device:
    """The device that a `device` field names; auto is a GPU when there is one."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The arithmetic that a `dtype` field names; auto is bfloat16 where the hardware multiplies it faster."""
    if dtype != "auto":
        return torch.bfloat16 if dtype == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
