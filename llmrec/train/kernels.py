"""What training can ask of a machine: an attention kernel, a compiler, an optimizer of bitsandbytes."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from llmrec.device import on_device, process_state, resolve_dtype
from llmrec.errors import UserError
from llmrec.model.architecture import unwrapped
from llmrec.model.layers import decoder_layers
from llmrec.resources import first_line
from llmrec.train.config import TrainConfig

FLASH = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}
"""Attention by the flash-attention packages (arXiv 2307.08691, 2407.08608): the module and the package of each."""
OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw-8bit": "adamw_8bit", "paged-adamw-8bit": "paged_adamw_8bit"}
"""`train.optimizer` -> its name in transformers."""


def check_kernels(config: TrainConfig) -> None:
    """Check that this machine has what `config` asks for.

    Raises:
        UserError: a flash attention kernel, a compiler or bitsandbytes is missing; or flash attention would compute in
            float32, which it can't.
    """
    cuda = torch.cuda.is_available()
    if config.attention in FLASH:
        module, package = FLASH[config.attention]
        subject = f"--train.attention {config.attention}"
        if not cuda:
            raise UserError(f"{subject}: no CUDA GPU here; set it to auto.")
        if find_spec(module) is None:
            raise UserError(f"{subject}: the package {package} is not installed; install it, or set it to auto.")
        if resolve_dtype(config.dtype, torch.device("cuda")) != torch.bfloat16:
            raise UserError(f"{subject} computes in bfloat16; set --train.dtype bfloat16, or --train.attention auto.")
    if config.optimizer != "adamw" and find_spec("bitsandbytes") is None:
        raise UserError(
            f"--train.optimizer {config.optimizer}: bitsandbytes is not installed; pip install bitsandbytes, or set it "
            "to adamw."
        )
    if config.optimizer == "paged-adamw-8bit" and not cuda:
        raise UserError("--train.optimizer paged-adamw-8bit: no CUDA GPU here; set it to adamw-8bit or adamw.")
    compiler = "triton" if cuda else os.environ.get("CXX", "g++")
    if config.compile and (find_spec(compiler) if cuda else shutil.which(compiler)) is None:
        raise UserError(
            f"--train.compile true needs {compiler}, which is not installed; install it, or set it to false."
        )


@contextmanager
def attention_kernel(model: Any, wanted: str) -> Iterator[None]:
    """Context manager: `model` attends by the kernel that `train.attention` names.

    For auto on a CPU that is eager attention: torch's fused kernel is half as fast on short sequences.

    Raises:
        UserError: the model does not support the kernel.
    """
    inner, device = unwrapped(model), process_state().device
    before = inner.config._attn_implementation
    chosen = wanted
    if wanted == "auto":
        chosen = "eager" if device.type == "cpu" else before
    elif wanted in FLASH:
        on_device(inner, str(device))  # its kernels compute on GPUs only, and `check_packing` runs before the training
    trouble = ""
    try:
        inner.set_attn_implementation(chosen)
    except (ValueError, ImportError) as error:
        trouble = f" ({first_line(error)})"
    if wanted != "auto" and inner.config._attn_implementation != wanted:
        raise UserError(
            f"--train.attention {wanted}: {type(inner).__name__} does not support it{trouble}; set it to auto."
        )
    try:
        yield
    finally:
        # The same kernel as after loading, so that scores are equal to the last bit.
        inner.set_attn_implementation(before)


@contextmanager
def compiled_layers(model: Any, wanted: bool) -> Iterator[None]:
    """Context manager: the decoder layers of `model` run compiled, if `wanted`.

    Layers are compiled one by one, since equal ones share their code, and since transformers does not see the examples
    that share a row if the whole model is compiled: it makes their masks outside of the layers.

    Raises:
        UserError: the model has no list of decoder layers.
    """
    layers = decoder_layers(unwrapped(model), "--train.compile true") if wanted else ()
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
