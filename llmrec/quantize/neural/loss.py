"""What an RQ-VAE minimises: the weighted sum of the terms that its configuration names."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmrec.quantize.config import LossConfig
from llmrec.quantize.neural.autoencoder import Quantized, ResidualAutoencoder
from llmrec.quantize.neural.objectives.cohesion import cohesion, spread
from llmrec.quantize.neural.objectives.collaborative import collaborative_alignment
from llmrec.quantize.neural.objectives.contrastive import contrastive_reconstruction
from llmrec.quantize.neural.objectives.diversity import diversity, group_codes


class Loss:
    """Terms of `settings` over a model; call `start_epoch` before the batches of every epoch."""

    def __init__(self, settings: LossConfig, model: ResidualAutoencoder, seed: int) -> None:
        self._settings = settings
        self._model = model
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        self._groups: list[Tensor] = []

    def start_epoch(self) -> None:
        """Group the codes anew for the diversity term."""
        if self._settings.diversity:
            self._groups = [
                group_codes(codebook.effective().detach(), self._settings.diversity_groups, self._seed)
                for codebook in self._model.codebooks
            ]

    def __call__(self, x: Tensor, collaborative: Tensor | None) -> tuple[Tensor, Tensor]:
        """Loss (scalar) and codes (int64 [B, L]) of a batch of standardised items.

        Args:
            x: float32 [B, D].
            collaborative: vectors of the same items, float32 [B, d], if the loss asks for them.
        """
        settings, model = self._settings, self._model
        z = model.encode(x)
        quantized = model.quantize(z)
        reconstruction = model.decode(quantized.joined)
        loss = self._reconstruction(x, z, reconstruction) + settings.quantization * quantized.loss
        if settings.contrastive:
            term = contrastive_reconstruction(x, reconstruction, settings.contrastive_temperature)
            loss = loss + settings.contrastive * term
        if collaborative is not None:
            term = collaborative_alignment(quantized.joined, collaborative, settings.collaborative_temperature)
            loss = loss + settings.collaborative * term
        if settings.cohesion:
            loss = loss + settings.cohesion * cohesion(torch.stack(quantized.vectors, dim=1), z)
        return loss + self._of_codebooks(quantized), quantized.codes

    def _reconstruction(self, x: Tensor, z: Tensor, reconstruction: Tensor) -> Tensor:
        match self._settings.reconstruction:
            case "mse":
                return F.mse_loss(reconstruction, x)
            case "cosine":
                return 1 - F.cosine_similarity(reconstruction, x, dim=1).mean()
            case "latent":
                return latent_reconstruction(self._model, z, reconstruction, self._settings.target_detach)
            case "none":
                return x.new_zeros(())

    def _of_codebooks(self, quantized: Quantized) -> Tensor:
        """Terms that bear on the codebooks alone, summed over levels."""
        settings, loss = self._settings, quantized.loss.new_zeros(())
        for level, codebook in enumerate(self._model.codebooks):
            if settings.diversity:
                codes, groups = quantized.codes[:, level], self._groups[level]
                term = diversity(codes, codebook.effective(), groups, self._generator)
                loss = loss + settings.diversity * term
            if settings.spread:
                loss = loss + settings.spread * spread(codebook.effective())
        return loss


def latent_reconstruction(model: ResidualAutoencoder, z: Tensor, reconstruction: Tensor, target_detach: bool) -> Tensor:
    """Mean over elements of |f(x') - z|^2 (scalar), f the encoder of `model` and x' the `reconstruction` [B, D].

    Our reading of DEX-VQ, of which only a figure is public: items are compared where they are quantized. An encoder
    that is constant brings it to 0, so another term must keep the latents `z` [B, d] apart. `target_detach` keeps
    its gradient from `z`.
    """
    return F.mse_loss(model.encode(reconstruction), z.detach() if target_detach else z)
