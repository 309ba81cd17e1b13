"""The rotation trick: gradients turn with the latent as it is turned onto its code (arXiv 2410.06424)."""

import torch
from torch import Tensor

from llmrec.quantize.neural.estimators.straight_through import straight_through

LEAST_NORM = 1e-6
"""Norm below which a vector counts as 0 and has no direction."""

ANTIPODAL = 1e-3
"""Length of the sum of two unit vectors below which rounding leaves no axis between them."""


def rotate(z: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized` [B, d] as sg(lambda R) z, row by row; nothing flows to the codebooks.

    R is the rotation, in the plane of both, of the direction of z onto that of its code, lambda the ratio of their
    norms. It is applied as two reflections, (I - 2 q q^T)(I - 2 r r^T) with r halfway between the directions: O(d),
    and orthogonal whatever the rounding. Where the code points away from z there is no r, and the second
    reflection alone takes z there.
    """
    with torch.no_grad():
        direction, code, ratio = directions(z, quantized)
        between = direction + code
        length = between.norm(dim=1, keepdim=True)
        between = torch.where(length > ANTIPODAL, between / length, 0)
    rotated = mirror(mirror(z, between), code) * ratio
    return straight_through(rotated, quantized)


def directions(z: Tensor, quantized: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows of both [B, d], 0 for a row of norm 0, and |quantized| / |z| [B, 1], 1 where z is 0."""
    z_norm, code_norm = z.norm(dim=1, keepdim=True), quantized.norm(dim=1, keepdim=True)
    ratio = torch.where(z_norm > LEAST_NORM, code_norm / z_norm, 1)
    return z / z_norm.clamp_min(LEAST_NORM), quantized / code_norm.clamp_min(LEAST_NORM), ratio


def mirror(z: Tensor, normal: Tensor) -> Tensor:
    """Rows of `z` [B, d] mirrored at the plane orthogonal to the unit row of `normal` [B, d]; kept where it is 0."""
    return z - 2 * (z * normal).sum(1, keepdim=True) * normal
