"""The straight-through estimator: gradients pass the quantizer as if it were not there (arXiv 1308.3432)."""

from torch import Tensor


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized` with the gradient of `z`; nothing flows to the codebooks."""
    return z + (quantized - z).detach()
