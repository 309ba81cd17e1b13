"""How gradients pass the quantizer.

Deterministic estimators join the latent and the sum of its codes, once: the sum's value, a gradient to the latent.
Stochastic ones sample a soft code per level, whose gradient reaches latent and codes alike.
"""

from collections.abc import Callable

from torch import Tensor

from llmrec.quantize.config import Estimator, RQVAEConfig
from llmrec.quantize.neural.estimators.gumbel import Gumbel
from llmrec.quantize.neural.estimators.reflection import reflect
from llmrec.quantize.neural.estimators.rotation import rotate
from llmrec.quantize.neural.estimators.sq_vae import SQVAE
from llmrec.quantize.neural.estimators.straight_through import straight_through

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
