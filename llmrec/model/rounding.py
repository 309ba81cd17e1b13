"""How large the rounding errors of a model are: its results may differ by them when computed in another order."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def rounded_otherwise(model: nn.Module) -> Iterator[None]:
    """Context manager: each value that a layer of `model` returns moves by up to one unit in its last place.

    How much a result changes by this shows its rounding error (stochastic arithmetic, Vignes 1993).
    """
    generator = torch.Generator().manual_seed(0)

    def move(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return output
        units = (2 * torch.rand(output.shape, generator=generator) - 1).to(output.device)
        return (output.float() * (1 + torch.finfo(output.dtype).eps * units)).to(output.dtype)

    hooks = [layer.register_forward_hook(move) for layer in model.modules() if not list(layer.children())]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Root mean square of the difference of two tensors of one shape."""
    return float((one - other).square().mean().sqrt())
