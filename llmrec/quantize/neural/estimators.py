"""Gradient estimators of a quantizer: straight-through, none, rotation, reflection, Gumbel-softmax and SQ-VAE.

Rotation and reflection are those of arXiv 2410.06424, SQ-VAE is that of arXiv 2205.07547. sg is the stop-gradient.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec.quantize.config import Estimator, RQVAEConfig
from llmrec.quantize.neural.codebooks import squared_distances


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """Return z + sg(quantized - z): the value of `quantized`, the gradient to `z`, none to the codebooks.

    Args:
        z: latents, float32 [B, d].
        quantized: sums of their codes, float32 [B, d].
    """
    return z + (quantized - z).detach()


def stop(z: Tensor, quantized: Tensor) -> Tensor:
    """Return sg(quantized): the decoder's gradient reaches neither `z` nor the codebooks; both are float32 [B, d]."""
    return quantized.detach()


LEAST_NORM = 1e-6
"""A vector with a norm below this counts as 0 and has no direction."""


ANTIPODAL = 1e-3
"""Two directions count as opposite if the sum of their unit vectors is shorter than this: rounding errors would
decide the direction of so short a sum."""


def rotate(z: Tensor, quantized: Tensor) -> Tensor:
    """Return sg(lambda R) z per row: the value of `quantized`, a rotated gradient to `z`, none to the codebooks.

    R rotates the direction of z onto the direction q of `quantized`, in the plane of the two; lambda is
    |quantized| / |z|. The rotation is applied as two reflections, R = (I - 2 q q^T)(I - 2 r r^T), where r is the unit
    vector halfway between the two directions. This costs O(d) per row, and R is orthogonal in spite of rounding. If
    the directions are opposite, r does not exist, and the reflection I - 2 q q^T alone maps z onto its code.

    Args:
        z: latents, float32 [B, d].
        quantized: sums of their codes, float32 [B, d].

    Returns:
        float32 [B, d].
    """
    with torch.no_grad():
        direction, code, ratio = directions(z, quantized)
        between = direction + code
        length = between.norm(dim=1, keepdim=True)
        between = torch.where(length > ANTIPODAL, between / length, 0)
    rotated = mirror(mirror(z, between), code) * ratio
    return straight_through(rotated, quantized)


def directions(z: Tensor, quantized: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Directions and ratio of norms of `z` and `quantized`, float32 [B, d] each.

    Returns:
        The unit rows of `z` and of `quantized`, float32 [B, d] each, about 0 for a row of norm 0; and
        |quantized| / |z|, float32 [B, 1], which is 1 where z is 0.
    """
    z_norm, code_norm = z.norm(dim=1, keepdim=True), quantized.norm(dim=1, keepdim=True)
    ratio = torch.where(z_norm > LEAST_NORM, code_norm / z_norm, 1)
    return z / z_norm.clamp_min(LEAST_NORM), quantized / code_norm.clamp_min(LEAST_NORM), ratio


def mirror(z: Tensor, normal: Tensor) -> Tensor:
    """Return (I - 2 n n^T) z per row, n the unit row of `normal`; z itself where n is 0. All are float32 [B, d]."""
    return z - 2 * (z * normal).sum(1, keepdim=True) * normal


def reflect(z: Tensor, quantized: Tensor) -> Tensor:
    """Return sg(lambda R) z per row: the value of `quantized`, a reflected gradient to `z`, none to the codebooks.

    R = I - 2 s s^T mirrors the direction of z onto that of `quantized`; R is the identity if they are the same.
    lambda is |quantized| / |z|.

    Args:
        z: latents, float32 [B, d].
        quantized: sums of their codes, float32 [B, d].

    Returns:
        float32 [B, d].
    """
    with torch.no_grad():
        direction, code, ratio = directions(z, quantized)
        across = direction - code
        length = across.norm(dim=1, keepdim=True)
        across = torch.where(length > LEAST_NORM, across / length, 0)
    return straight_through(mirror(z, across) * ratio, quantized)


class Gumbel(nn.Module):
    """Gumbel-softmax: soft codes sampled from softmax(-|r - c|^2) at a constant temperature.

    Args:
        temperature: above 0; the smaller, the closer a sample is to a single code.
        beta: weight of the commitment loss.
    """

    def __init__(self, temperature: float, beta: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.beta = beta

    def forward(self, residual: Tensor, codes: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sample a soft code for each residual.

        Args:
            residual: float32 [B, d].
            codes: float32 [C, d].
            level: not used.

        Returns:
            The soft codes, float32 [B, d]; the code of largest weight in each, int64 [B]; and the loss, a scalar:
            codebook loss plus beta times commitment loss, both of the soft code.
        """
        weights = sample(-squared_distances(residual, codes), self.temperature)
        code = weights @ codes
        loss = F.mse_loss(code, residual.detach()) + self.beta * F.mse_loss(residual, code.detach())
        return code, weights.argmax(1), loss


def sample(logits: Tensor, temperature: float) -> Tensor:
    """Draw one Gumbel-softmax sample per row.

    Args:
        logits: float32 [B, C].
        temperature: above 0.

    Returns:
        Weights, float32 [B, C]: each row sums to 1, and its argmax has the distribution softmax(logits).
    """
    noise = torch.empty_like(logits).exponential_().log_()
    return ((logits - noise) / temperature).softmax(1)


COOLING = 3.0
"""The temperature after a share t of the training is the initial one times exp(-COOLING t). With the paper's
exp(-1e-5 n) after n steps, it is as low after 300,000 steps; a catalogue's training often has a hundredth of them."""


LEAST_VARIANCE = 1e-6
"""Lower bound of the initial sigma^2."""


class SQVAE(nn.Module):
    """SQ-VAE (arXiv 2205.07547): soft codes sampled from p(k | r) ~ exp(-|r - c_k|^2 / (2 sigma^2)).

    Each level learns its own sigma^2. The loss is the paper's regulariser divided by D, the dimensions of the input.
    With `log_likelihood` as the reconstruction term, the sum of both is the negative evidence lower bound per element.

    Args:
        temperature: initial temperature of the samples, above 0.
        levels: L.
        dims: D.
    """

    def __init__(self, temperature: float, levels: int, dims: int) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(levels))
        self.initial_temperature = temperature
        self.dims = dims
        self.steps = 1
        """Number of training steps over which the temperature falls; the training sets it."""
        self.draws = 0

    @property
    def temperature(self) -> float:
        """Temperature at the current training step; a step draws one sample per level."""
        return self.initial_temperature * math.exp(-COOLING * self.draws / (len(self.log_variance) * self.steps))

    @torch.no_grad()
    def start(self, level: int, residual: Tensor, code: Tensor) -> None:
        """Set sigma^2 of `level` to the mean of (residual - code)^2 over all elements; both are float32 [B, d]."""
        self.log_variance[level] = (residual - code).square().mean().clamp_min(LEAST_VARIANCE).log()

    def forward(self, residual: Tensor, codes: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sample a soft code for each residual.

        Args:
            residual: float32 [B, d].
            codes: float32 [C, d].
            level: number of the level, from 0.

        Returns:
            The soft codes, float32 [B, d]; the code of largest weight in each, int64 [B]; and the loss, a scalar.
        """
        precision = 0.5 * torch.exp(-self.log_variance[level])
        logits = -squared_distances(residual, codes) * precision
        weights = sample(logits, self.temperature)
        self.draws += 1
        code = weights @ codes
        return code, weights.argmax(1), regulariser(logits, residual, code, precision) / self.dims


def regulariser(logits: Tensor, residual: Tensor, code: Tensor, precision: Tensor) -> Tensor:
    """Return the mean over rows of sum_k p_k log p_k + |r - c|^2 / (2 sigma^2), a scalar of at least -log C.

    Args:
        logits: unnormalised log p, float32 [B, C].
        residual: r, float32 [B, d].
        code: c, the soft code, float32 [B, d].
        precision: 1 / (2 sigma^2), scalar.
    """
    log_p = logits.log_softmax(1)
    return (log_p.exp() * log_p).sum(1).mean() + precision * (residual - code).square().sum(1).mean()


def log_likelihood(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Return 1/2 log of the mean squared error (scalar): the negative log-likelihood per element, up to a constant.

    It is that of a normal distribution around the reconstruction, whose variance is estimated as the error of the
    batch. A fixed variance would let the regulariser outweigh the error of input of another scale.

    Args:
        x: items, float32 [B, D].
        reconstruction: float32 [B, D].
    """
    return 0.5 * F.mse_loss(reconstruction, x).clamp_min(torch.finfo(torch.float32).tiny).log()


JOINS: dict[Estimator, Callable[[Tensor, Tensor], Tensor]] = {
    "straight-through": straight_through,
    "none": stop,
    "rotation": rotate,
    "reflection": reflect,
}


def build_sampler(settings: RQVAEConfig, levels: int, dims: int) -> Gumbel | SQVAE | None:
    """Return the stochastic estimator that `settings` asks for, or None; `dims` is D, the dimensions of the input."""
    if settings.estimator == "gumbel":
        return Gumbel(settings.temperature, settings.beta)
    if settings.estimator == "sq-vae":
        return SQVAE(settings.temperature, levels, dims)
    return None
