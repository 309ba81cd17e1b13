"""The loss of an RQ-VAE: reconstruction, quantization, and nine optional terms.

The optional terms are contrastive reconstruction (CoST, arXiv 2404.14774), collaborative alignment and diversity
(LETTER, arXiv 2405.07314), cohesion and spread (R3-VAE, arXiv 2604.11440), the contrast of clusters (arXiv 2109.13921),
the supervision of correlations (arXiv 2401.07257), and the words of texts and the contrast of siblings (LMIndexer,
arXiv 2310.07815).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmrec.quantize.classical.kmeans import balanced_assignment, balanced_kmeans
from llmrec.quantize.config import LossConfig
from llmrec.quantize.neural.autoencoder import Quantized, ResidualAutoencoder
from llmrec.quantize.neural.estimators import SQVAE, log_likelihood
from llmrec.quantize.neural.words import word_loss


def contrastive_reconstruction(x: Tensor, reconstruction: Tensor, temperature: float) -> Tensor:
    """Return -log softmax_j(cos(x_i, reconstruction_j) / temperature) at j = i, mean over the batch (scalar).

    Args:
        x: items, floats [B, D].
        reconstruction: their reconstructions, floats [B, D]; row i belongs to row i of `x`.
        temperature: above 0; a smaller one gives the most similar items more weight.
    """
    cosines = F.normalize(x, dim=1) @ F.normalize(reconstruction, dim=1).T
    return F.cross_entropy(cosines / temperature, torch.arange(len(x), device=x.device))


def collaborative_alignment(quantized: Tensor, vectors: Tensor, temperature: float) -> Tensor:
    """Return -log softmax_j(<quantized_i, vectors_j> / temperature) at j = i, mean over rows i with a vector (scalar).

    Args:
        quantized: sums of codes, floats [B, d].
        vectors: frozen collaborative vectors, floats [B, d]. A row of zeros marks an item without interactions; it is
            left out both as i and as j. If all rows are zeros, the result is 0.
        temperature: above 0; a smaller one gives the most similar items more weight.
    """
    known = vectors.any(dim=1)
    scores = quantized[known] @ vectors[known].T / temperature
    answers = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores, answers, reduction="sum") / max(len(scores), 1)


ITERATIONS = 10
"""Iterations of the constrained k-means that groups the codes, as in LETTER's code."""


def group_codes(codebook: Tensor, groups: int, seed: int) -> Tensor:
    """Cluster the codes by constrained k-means into groups whose sizes differ by at most 1.

    Args:
        codebook: floats [C, d].
        groups: number of groups.
        seed: of the k-means.

    Returns:
        Group of each code, int64 [C], 0 to groups - 1.

    Raises:
        ValueError: fewer than two codes per group.
    """
    if len(codebook) < 2 * groups:
        raise ValueError(f"{len(codebook)} codes do not fill {groups} groups of two")
    codes = codebook.detach().float().cpu().numpy()
    labels = balanced_assignment(codes, balanced_kmeans(codes, groups, ITERATIONS, seed))
    return torch.from_numpy(labels).long().to(codebook.device)


def diversity(codes: Tensor, codebook: Tensor, groups: Tensor, generator: torch.Generator) -> Tensor:
    """Pull the codes of a group together, and codes of different groups apart.

    For each item, draw another code from the group of its code. The loss is the cross entropy of predicting the drawn
    code by a softmax over the inner products of the item's code with all other codes, mean over items (scalar). It is
    infinite if an item's code is alone in its group.

    Args:
        codes: the items' codes, int64 [B].
        codebook: floats [C, d]; only it gets a gradient.
        groups: result of `group_codes`, int64 [C].
        generator: draws the other codes; on the CPU, so that the draws are the same on every device.
    """
    answers = _mates(codes, groups, torch.rand(len(codes), generator=generator).to(codes.device))
    scores = codebook[codes] @ codebook.T
    # mask the code itself: it scores highest, and the term would only make the codes shorter
    scores = scores.scatter(1, codes[:, None], float("-inf"))
    return F.cross_entropy(scores, answers)


def _mates(codes: Tensor, groups: Tensor, draws: Tensor) -> Tensor:
    """Pick, for each of `codes`, another code of its group: int64 [B].

    `groups`, int64 [C], is the group of each code. `draws`, floats [B] uniform in [0, 1), make the choice uniform.
    """
    members = groups.argsort(stable=True)
    sizes = groups.bincount()
    starts = sizes.cumsum(0) - sizes
    places = torch.empty_like(members)
    places[members] = torch.arange(len(members), device=members.device) - starts[groups[members]]
    own = groups[codes]
    steps = 1 + (draws * (sizes[own] - 1)).long()  # 1 to size - 1, so never the code itself
    return members[starts[own] + (places[codes] + steps) % sizes[own]]


SHARPNESS = 2.0
"""Factor of the cosine distance in `spread`, as in the paper."""


def cohesion(vectors: Tensor, target: Tensor) -> Tensor:
    """Return the cosine distance of the latent to the sum of the first l codes, mean over items and l (scalar).

    l is 1, 2, ... L. The term is low if already the first codes have the direction of the latent, not only all L.

    Args:
        vectors: vectors of each item's codes, floats [B, L, d].
        target: latents of the items, floats [B, d].
    """
    prefixes = vectors.cumsum(dim=1)
    return 1 - F.cosine_similarity(prefixes, target[:, None], dim=2).mean()


def spread(codebook: Tensor) -> Tensor:
    """Return log mean exp(-2 * cosine distance) over all pairs of different codes (scalar, at most 0).

    If all codes have the same direction, it is 0; if they are orthogonal, it is -2.

    Args:
        codebook: floats [C, d], C > 1.
    """
    unit = F.normalize(codebook, dim=1)
    rows, columns = torch.triu_indices(len(unit), len(unit), offset=1, device=unit.device)
    exponents = SHARPNESS * ((unit @ unit.T)[rows, columns] - 1)
    return exponents.exp().mean().log()


def cluster_contrast(latents: Tensor, clusters: Tensor, temperature: float) -> Tensor:
    """Return the contrastive loss of items whose positives are the other items of their cluster (scalar).

    For item i, it is the mean over its positives p of -log softmax_j(cos(z_i, z_p) / temperature), j over all items
    but i; the result is the mean over the items that have positives, or 0 without any.

    Args:
        latents: z, floats [B, d].
        clusters: cluster of each item, int64 [B].
        temperature: above 0.
    """
    log_share = _similarities(latents, temperature)
    positive = (clusters[:, None] == clusters).fill_diagonal_(False)
    counts = positive.sum(1)
    means = -log_share.masked_fill(~positive, 0).sum(1) / counts.clamp_min(1)
    return means.sum() / (counts > 0).sum().clamp_min(1)


def correlation(x: Tensor, quantized: Tensor, temperature: float) -> Tensor:
    """Return the KL divergence of the similarities of `quantized` from those of `x`, mean over the items (scalar).

    The similarities of item i are the softmax over all other items j of the batch of cos(i, j) / temperature. Those of
    `x` are the target and get no gradient.

    Args:
        x: items, floats [B, D].
        quantized: sums of their codes, floats [B, d].
        temperature: above 0.
    """
    target, found = _similarities(x.detach(), temperature), _similarities(quantized, temperature)
    return (target.exp() * (target - found)).sum(1).mean()


def sibling_contrast(residuals: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Return the contrastive loss of items against those that have the same codes up to a level (scalar).

    r_l is what the first l codes leave of the latent, l = 0, 1, ... L - 1, and the siblings of item i at l are the
    items of the batch with the same first l codes (at l = 0, all), with i itself. The loss is the mean over items and l
    of -log softmax_j(cos(r_l of i, r_l of j) / temperature) at j = i, with j over the siblings.

    LMIndexer compares the inner products of a language model's states, and draws four siblings per item.

    Args:
        residuals: r_l, floats [B, L, d].
        codes: int64 [B, L].
        temperature: above 0.
    """
    unit = F.normalize(residuals, dim=2).transpose(0, 1)
    scores = unit @ unit.mT / temperature
    same = (codes.T[:, :, None] == codes.T[:, None]).cumprod(0).bool()[:-1]
    siblings = torch.cat([torch.ones_like(scores[:1], dtype=torch.bool), same])
    log_shares = scores.masked_fill(~siblings, torch.finfo(scores.dtype).min).log_softmax(2)
    return -log_shares.diagonal(dim1=1, dim2=2).mean()


def _similarities(vectors: Tensor, temperature: float) -> Tensor:
    """log softmax_j(cos(v_i, v_j) / temperature) of the rows of `vectors`, floats [B, d], j not i: floats [B, B]."""
    unit = F.normalize(vectors, dim=1)
    scores = unit @ unit.T / temperature
    itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return scores.masked_fill(itself, torch.finfo(scores.dtype).min).log_softmax(1)


class Loss:
    """The loss of a model on a batch of items; call `start_epoch` before the first batch of each epoch.

    Args:
        settings: terms and their weights.
        model: the network to train.
        seed: of the grouping and the draws of the diversity term.
    """

    def __init__(self, settings: LossConfig, model: ResidualAutoencoder, seed: int) -> None:
        self._settings = settings
        self._model = model
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        self._groups: list[Tensor] = []

    def start_epoch(self) -> None:
        """Group the present codes for the diversity term, if it has a weight."""
        if self._settings.diversity:
            self._groups = [
                group_codes(codebook.effective().detach(), self._settings.diversity_groups, self._seed)
                for codebook in self._model.codebooks
            ]

    def __call__(self, x: Tensor, collaborative: Tensor | None, words: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the loss (scalar) and the codes, int64 [B, L], of a batch of standardised items.

        Args:
            x: standardised items, float32 [B, D].
            collaborative: collaborative vectors of the same items, float32 [B, d]; None leaves that term out.
            words: shares of the words in the texts of the same items, float32 [B, V]; None leaves that term out.
        """
        settings, model = self._settings, self._model
        z = model.encode(x)
        quantized = model.quantize(z)
        reconstruction = model.decode(quantized.joined)
        of_levels = settings.quantization * quantized.loss + self._of_codebooks(quantized)
        if settings.over_levels == "mean":
            of_levels = of_levels / len(model.codebooks)
        loss = self._reconstruction(x, z, reconstruction) + of_levels
        if settings.contrastive:
            compared = reconstruction if model.head is None else model.head(z)
            term = contrastive_reconstruction(x, compared, settings.contrastive_temperature)
            loss = loss + settings.contrastive * term
        if collaborative is not None:
            term = collaborative_alignment(quantized.joined, collaborative, settings.collaborative_temperature)
            loss = loss + settings.collaborative * term
        if settings.cohesion:
            loss = loss + settings.cohesion * cohesion(torch.stack(quantized.vectors, dim=1), z)
        if settings.cluster:
            term = cluster_contrast(z, quantized.codes[:, 0], settings.similarity_temperature)
            loss = loss + settings.cluster * term
        if settings.correlation:
            loss = loss + settings.correlation * correlation(x, quantized.joined, settings.similarity_temperature)
        if words is not None and model.words is not None:
            told = model.words(model.prefixes(z, quantized.vectors))
            loss = loss + settings.words * word_loss(told, words)
        if settings.siblings:
            vectors = torch.stack(quantized.vectors, dim=1).detach()
            left = z[:, None] - (vectors.cumsum(1) - vectors)
            term = sibling_contrast(left, quantized.codes, settings.similarity_temperature)
            loss = loss + settings.siblings * term
        return loss, quantized.codes

    def _reconstruction(self, x: Tensor, z: Tensor, reconstruction: Tensor) -> Tensor:
        match self._settings.reconstruction:
            case "mse" if isinstance(self._model.sampler, SQVAE):
                return log_likelihood(x, reconstruction)
            case "mse":
                return F.mse_loss(reconstruction, x)
            case "cosine":
                return 1 - F.cosine_similarity(reconstruction, x, dim=1).mean()
            case "latent":
                return latent_reconstruction(self._model, z, reconstruction, self._settings.target_detach)
            case "none":
                return x.new_zeros(())

    def _of_codebooks(self, quantized: Quantized) -> Tensor:
        """Sum over levels of the terms that only the codebooks get a gradient from: diversity and spread."""
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
    """Return the mean over elements of (f(x') - z)^2 (scalar): the error is measured where items are quantized.

    This is our reading of DEX-VQ, of which only a figure is public. A constant encoder has a loss of 0, so another
    term must keep the latents apart.

    Args:
        model: f is its encoder.
        z: latents of the items, float32 [B, d].
        reconstruction: x', the decoder's output, float32 [B, D].
        target_detach: let no gradient of this term flow into `z`.
    """
    return F.mse_loss(model.encode(reconstruction), z.detach() if target_detach else z)
