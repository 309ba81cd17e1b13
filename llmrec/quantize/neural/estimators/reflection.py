"""The rotation trick's rival in its paper: gradients are mirrored as the latent is onto its code (arXiv 2410.06424)."""

import torch
from torch import Tensor

from llmrec.quantize.neural.estimators.rotation import LEAST_NORM, directions, mirror
from llmrec.quantize.neural.estimators.straight_through import straight_through


def reflect(z: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized` [B, d] as sg(lambda R) z, row by row; nothing flows to the codebooks.

    R = I - 2 s s^T mirrors the direction of z onto that of its code (the identity where they are the same), lambda
    is the ratio of their norms.
    """
    with torch.no_grad():
        direction, code, ratio = directions(z, quantized)
        across = direction - code
        length = across.norm(dim=1, keepdim=True)
        across = torch.where(length > LEAST_NORM, across / length, 0)
    return straight_through(mirror(z, across) * ratio, quantized)
