"""Base models whose linear layers hold 8 or 4 bits per weight, by bitsandbytes (QLoRA, arXiv 2305.14314)."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any, cast

import torch
from accelerate.utils import is_bnb_available
from torch import nn

from llmrec.device import process_state, resolve_device, resolve_dtype
from llmrec.errors import UserError
from llmrec.model.architecture import unwrapped

ON_CPU = "0.50"
"""The first version of bitsandbytes whose 8 and 4 bits are tested here on a CPU."""


def missing_for_bits() -> str | None:
    """What this machine lacks for weights of fewer bits; None if it lacks nothing."""
    if find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    if not torch.cuda.is_available() and not is_bnb_available(min_version=ON_CPU):
        return f"bitsandbytes before {ON_CPU} needs a CUDA GPU"
    return None


def fewer_bits(bits: int) -> dict[str, Any]:
    """Arguments of `from_pretrained` for linear layers of 8 bits, or of 4 bits as in QLoRA.

    Raises:
        UserError: this machine lacks something that they need.
    """
    from transformers import BitsAndBytesConfig

    if (missing := missing_for_bits()) is not None:
        raise UserError(f"--base.bits {bits}: {missing}; pip install -U bitsandbytes, or set it to 32.")
    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    four["bnb_4bit_compute_dtype"] = resolve_dtype("auto", resolve_device("auto"))
    config = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4, **(four if bits == 4 else {}))
    state = process_state()
    here = state.local_process_index if state.device.type == "cuda" else state.device.type
    return {"quantization_config": config, "device_map": {"": here}}


def bits_of(model: Any) -> int:
    """Bits per weight of the linear layers of a model, as `BaseConfig.bits`; 32 if they are not quantized."""
    inner = unwrapped(model)
    if not getattr(inner, "is_quantized", False):
        return 32
    return 4 if inner.config.quantization_config.load_in_4bit else 8


def shared_weights(model: nn.Module) -> dict[int, Any]:
    """The memo with which `copy.deepcopy` copies the modules of `model` and shares their weights: id -> object.

    A layer of 8 bits takes its scales from its parameter in its first forward pass, so that a copy would leave the
    other copies without. Here it takes them before, and the copies share what it took.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    for layer in cast(Iterable[Any], model.modules()):
        if hasattr(layer, "init_8bit_state"):
            if layer.weight.CB is not None:
                layer.init_8bit_state()
            memo[id(layer.state)] = layer.state
    return memo
