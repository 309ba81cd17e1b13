"""Terms of an RQ-VAE's loss beside the reconstruction: contrastive, collaborative, diversity, cohesion, spread."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmrec.quantize.classical.kmeans import balanced_assignment, balanced_kmeans
from llmrec.quantize.config import LossConfig
from llmrec.quantize.neural.autoencoder import Quantized, ResidualAutoencoder


def contrastive_reconstruction(x: Tensor, reconstruction: Tensor, temperature: float) -> Tensor:
    """-log softmax_j(cos(x_i, reconstruction_j) / temperature) at j = i, mean over the batch (scalar).

    Args:
        x: items, floats [B, D].
        reconstruction: their reconstructions, floats [B, D]; row i belongs to row i of `x`.
        temperature: positive; smaller ones sharpen.
    """
    cosines = F.normalize(x, dim=1) @ F.normalize(reconstruction, dim=1).T
    return F.cross_entropy(cosines / temperature, torch.arange(len(x), device=x.device))


def collaborative_alignment(quantized: Tensor, vectors: Tensor, temperature: float) -> Tensor:
    """-log softmax_j(<quantized_i, vectors_j> / temperature) at j = i, mean over the rows that have a vector (scalar).

    Args:
        quantized: sums of codes, floats [B, d].
        vectors: frozen collaborative vectors, floats [B, d]. A row of zeros marks an item without behaviour; it is
            neither asked nor offered as an answer. 0 if all rows are such.
        temperature: positive; smaller ones sharpen.
    """
    known = vectors.any(dim=1)
    scores = quantized[known] @ vectors[known].T / temperature
    answers = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores, answers, reduction="sum") / max(len(scores), 1)


ITERATIONS = 10
"""Of the constrained k-means, as in LETTER's code."""


def group_codes(codebook: Tensor, groups: int, seed: int) -> Tensor:
    """Group (int64 [C], 0 to groups - 1) of every code of `codebook` (floats [C, d]); group sizes differ by at most 1.

    Raises:
        ValueError: fewer than two codes per group.
    """
    if len(codebook) < 2 * groups:
        raise ValueError(f"{len(codebook)} codes do not fill {groups} groups of two")
    codes = codebook.detach().float().cpu().numpy()
    labels = balanced_assignment(codes, balanced_kmeans(codes, groups, ITERATIONS, seed))
    return torch.from_numpy(labels).long().to(codebook.device)


def diversity(codes: Tensor, codebook: Tensor, groups: Tensor, generator: torch.Generator) -> Tensor:
    """Cross entropy (scalar) of finding, by inner product, another code of the group of each item's code.

    Args:
        codes: the items' codes, int64 [B].
        codebook: floats [C, d]; the only receiver of gradient.
        groups: of `group_codes`, int64 [C]; infinite for a code alone in its group.
        generator: draws the other code. On the CPU whatever the device, so that all devices draw alike.
    """
    answers = _mates(codes, groups, torch.rand(len(codes), generator=generator).to(codes.device))
    scores = codebook[codes] @ codebook.T
    # a code is most like itself: unmasked, the term would only shorten the codes
    scores = scores.scatter(1, codes[:, None], float("-inf"))
    return F.cross_entropy(scores, answers)


def _mates(codes: Tensor, groups: Tensor, draws: Tensor) -> Tensor:
    """Another code (int64 [B]) of each code's group, uniform by `draws` (floats [B] in [0, 1))."""
    members = groups.argsort(stable=True)
    sizes = groups.bincount()
    starts = sizes.cumsum(0) - sizes
    places = torch.empty_like(members)
    places[members] = torch.arange(len(members), device=members.device) - starts[groups[members]]
    own = groups[codes]
    steps = 1 + (draws * (sizes[own] - 1)).long()  # 1 to size - 1, so never back to the code itself
    return members[starts[own] + (places[codes] + steps) % sizes[own]]


SHARPNESS = 2.0
"""Weight of a cosine distance in `spread`, as in the paper."""


def cohesion(vectors: Tensor, target: Tensor) -> Tensor:
    """Cosine distance between an item and what each prefix of its semantic ID stands for, mean over items and levels.

    Low if already the first codes point where the item does, not only the sum of all.

    Args:
        vectors: the codes of every item, floats [B, L, d].
        target: what their sum stands for (the latent), floats [B, d].
    """
    prefixes = vectors.cumsum(dim=1)
    return 1 - F.cosine_similarity(prefixes, target[:, None], dim=2).mean()


def spread(codebook: Tensor) -> Tensor:
    """log mean exp(-2 * cosine distance) over the pairs of different rows of `codebook` (floats [C, d], C > 1).

    A scalar of at most 0, which it is if all codes point one way; orthogonal codes give -2.
    """
    unit = F.normalize(codebook, dim=1)
    rows, columns = torch.triu_indices(len(unit), len(unit), offset=1, device=unit.device)
    exponents = SHARPNESS * ((unit @ unit.T)[rows, columns] - 1)
    return exponents.exp().mean().log()


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
