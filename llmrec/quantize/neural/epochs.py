"""The choice of the epoch whose weights an RQ-VAE keeps, and the step size over the training.

LC-Rec (arXiv 2311.09049) and LETTER (2405.07314) keep the epoch in which the fewest items collide.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmrec.quantize.base import BLOCK
from llmrec.quantize.collisions import excess
from llmrec.quantize.config import RQVAEConfig
from llmrec.quantize.neural.autoencoder import ResidualAutoencoder


class Epochs:
    """Measures the collision rate every `measure_every` epochs and after the last one, and keeps the best weights.

    Args:
        settings: `measure_every`, `keep` and `epochs`.
        model: the network in training.
        data: standardised items, float32 [N, D].
    """

    def __init__(self, settings: RQVAEConfig, model: ResidualAutoencoder, data: Tensor) -> None:
        self._settings, self._model, self._data = settings, model, data
        self._best: dict[str, Tensor] = {}
        self.measured: list[int] = []
        """The measured epochs, from 1."""
        self.losses: list[float] = []
        """Mean loss per item in each of them."""
        self.collision_rates: list[float] = []
        """Collision rate after each of them, (N - distinct tuples of codes) / N, with the nearest codes."""

    def after(self, epoch: int, loss: float) -> None:
        """Measure the model after `epoch` if it is the turn; `loss` is the mean of the epoch."""
        every = self._settings.measure_every
        if not every or (epoch % every and epoch != self._settings.epochs):
            return
        self.measured.append(epoch)
        self.losses.append(loss)
        self.collision_rates.append(self._collision_rate())
        if self._settings.keep == "fewest-collisions" and self.kept == epoch:
            self._best = copy.deepcopy(self._model.state_dict())

    @property
    def kept(self) -> int:
        """The epoch to keep, of those up to now; among equals the earliest."""
        if self._settings.keep == "last":
            return self._settings.epochs
        return self.measured[self.collision_rates.index(min(self.collision_rates))]

    def restore(self) -> None:
        """Give the model the weights of the epoch to keep; call it after the last epoch."""
        if self._best:
            self._model.load_state_dict(self._best)

    def figures(self) -> dict[str, Any] | None:
        """`epochs`, `loss`, `collision_rate` and `kept`, as `Quantizer.training`; None if nothing was measured."""
        if not self.measured:
            return None
        return {
            "epochs": self.measured,
            "loss": self.losses,
            "collision_rate": self.collision_rates,
            "kept": self.kept,
        }

    @torch.no_grad()
    def _collision_rate(self) -> float:
        self._model.eval()
        blocks = self._data.split(BLOCK)
        codes = torch.cat([self._model.quantize(self._model.encode(block)).codes for block in blocks])
        self._model.train()
        return excess(codes.cpu().numpy()) / len(codes)


def step_size(settings: RQVAEConfig, steps: int) -> Callable[[int], float]:
    """Factor of the learning rate, as a function of the step (from 0) out of `steps` steps."""
    warm = round(settings.warmup * steps)

    def factor(step: int) -> float:
        if step < warm:
            return step / warm
        return 1.0 if settings.schedule == "constant" else max(0.0, (steps - step) / max(1, steps - warm))

    return factor
