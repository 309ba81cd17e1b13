"""How gradients pass a quantizer: straight-through, rotation, Gumbel-softmax, SQ-VAE."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec.quantize.config import Estimator, RQVAEConfig
from llmrec.quantize.neural.codebooks import squared_distances


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized` with the gradient of `z`; nothing flows to the codebooks."""
    return z + (quantized - z).detach()


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


class Gumbel(nn.Module):
    """Soft codes sampled from softmax(-|r - c|^2) at a constant temperature."""

    def __init__(self, temperature: float, beta: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.beta = beta

    def forward(self, residual: Tensor, codes: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Soft code (float [B, d]), the code it leans to most (int64 [B]) and loss (scalar) of `residual` [B, d].

        The loss is the codebook and commitment loss of the soft code.
        """
        weights = sample(-squared_distances(residual, codes), self.temperature)
        code = weights @ codes
        loss = F.mse_loss(code, residual.detach()) + self.beta * F.mse_loss(residual, code.detach())
        return code, weights.argmax(1), loss


def sample(logits: Tensor, temperature: float) -> Tensor:
    """One draw of relaxed one-hot rows [B, C] whose argmax is distributed as softmax(logits)."""
    noise = torch.empty_like(logits).exponential_().log_()
    return ((logits - noise) / temperature).softmax(1)


COOLING = 1e-5
"""Rate at which the temperature falls, per step."""


LEAST_VARIANCE = 1e-6
"""Smallest sigma^2 to start from."""


class SQVAE(nn.Module):
    """Soft codes sampled from p(k | r) ~ exp(-|r - c_k|^2 / 2 sigma^2), sigma^2 learned per level.

    The loss is the paper's regulariser over D, the dimensions of the input: with a reconstruction error that is a mean
    over as many elements, their sum is the evidence bound per element, under a fixed variance of 1/2.
    """

    def __init__(self, temperature: float, levels: int, dims: int) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(levels))
        self.initial_temperature = temperature
        self.dims = dims
        self.draws = 0

    @property
    def temperature(self) -> float:
        """Temperature of the present step, which draws once per level."""
        return self.initial_temperature * math.exp(-COOLING * self.draws / len(self.log_variance))

    @torch.no_grad()
    def start(self, level: int, residual: Tensor, code: Tensor) -> None:
        """Set sigma^2 of `level` to the variance per dimension that `residual` [B, d] has around `code` [B, d]."""
        self.log_variance[level] = (residual - code).square().mean().clamp_min(LEAST_VARIANCE).log()

    def forward(self, residual: Tensor, codes: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Soft code (float [B, d]), the code it leans to most (int64 [B]) and loss (scalar) of `residual` [B, d]."""
        precision = 0.5 * torch.exp(-self.log_variance[level])
        logits = -squared_distances(residual, codes) * precision
        weights = sample(logits, self.temperature)
        self.draws += 1
        code = weights @ codes
        return code, weights.argmax(1), regulariser(logits, residual, code, precision) / self.dims


def regulariser(logits: Tensor, residual: Tensor, code: Tensor, precision: Tensor) -> Tensor:
    """Mean over rows of sum p log p + |r - c|^2 / 2 sigma^2, at least -log C, scalar.

    Args:
        logits: unnormalised log p, [B, C].
        residual: r [B, d].
        code: c [B, d].
        precision: 1 / 2 sigma^2, scalar.
    """
    log_p = logits.log_softmax(1)
    return (log_p.exp() * log_p).sum(1).mean() + precision * (residual - code).square().sum(1).mean()


JOINS: dict[Estimator, Callable[[Tensor, Tensor], Tensor]] = {
    "straight-through": straight_through,
    "rotation": rotate,
    "reflection": reflect,
}


def build_sampler(settings: RQVAEConfig, levels: int, dims: int) -> Gumbel | SQVAE | None:
    """The stochastic estimator that `settings` asks for, if any; inputs have `dims` dimensions."""
    if settings.estimator == "gumbel":
        return Gumbel(settings.temperature, settings.beta)
    if settings.estimator == "sq-vae":
        return SQVAE(settings.temperature, levels, dims)
    return None
