"""Trains a fitted tokenizer further, so that its codes suit a language model that was trained on them.

The two alignments are those of ETEGRec (Liu et al., SIGIR 2025, arXiv 2409.05546). With h the language model's hidden
state after a history, and x the vector of the item that follows:

    sequence-item        the code distributions of a projection of h, and those of x, are alike at each level
    preference-semantic  another projection of h finds the reconstruction of x among those of the batch

    loss = the tokenizer's own + sequence_item * the first + preference_semantic * the second

The language model is frozen, so the states are computed once. ETEGRec has an RQ-VAE over vectors of SASRec and T5. Here
the tokenizer is an RQ-VAE, or residual k-means, whose codebooks become parameters, with a shift before them that starts
as the identity; h is the state from which the first code is predicted, in both alignments; the projections start from a
ridge regression of the items on the states, as states of no meaning would first draw the codes away; and the language
model itself is trained without the alignments.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec.console import get_logger, track
from llmrec.device import resolve_device
from llmrec.errors import UserError
from llmrec.quantize.base import BLOCK, Quantizer
from llmrec.quantize.classical.residual import RQKMeans, Shift
from llmrec.quantize.config import RefineConfig
from llmrec.quantize.neural.codebooks import Codebook, LearnedCodebook, squared_distances
from llmrec.quantize.neural.rq_vae import RQVAE

log = get_logger(__name__)

BATCH = 256
"""Pairs, and as many random items, per step."""
HIDDEN = 256
"""H of the `Shift` before residual k-means."""
SIMILARITY = 0.1
"""Temperature of the cosines in the preference-semantic alignment."""
PENALTY = 0.01
"""Penalty of the ridge regression, as a share of the mean variance of the states' dimensions."""


class Chain(NamedTuple):
    """The residual chain over latents z, float32 [B, d]."""

    codes: Tensor
    """int64 [B, L]."""
    residuals: list[Tensor]
    """L tensors float32 [B, d]: z minus the codes before the level. Their gradient goes to z."""
    total: Tensor
    """float32 [B, d], the sum of the codes; its gradient goes to the codebooks."""


def chain(z: Tensor, codebooks: Sequence[Codebook]) -> Chain:
    """Quantize the latents `z`, float32 [B, d], each level by the nearest code."""
    residual, total = z, torch.zeros_like(z)
    codes, residuals = [], []
    for codebook in codebooks:
        vectors = codebook.effective()
        index = codebook.select(residual, vectors)
        code = vectors[index]
        codes.append(index)
        residuals.append(residual)
        residual, total = residual - code.detach(), total + code
    return Chain(torch.stack(codes, dim=1), residuals, total)


def code_distances(residuals: Sequence[Tensor], codebooks: Sequence[Tensor]) -> list[Tensor]:
    """|r_l - c_lk|^2 of each level: L tensors float32 [B, C_l].

    Args:
        residuals: r_l, L tensors float32 [B, d].
        codebooks: c_l, L tensors float32 [C_l, d].
    """
    return [squared_distances(residual, codes) for residual, codes in zip(residuals, codebooks, strict=True)]


def sequence_item_alignment(items: Sequence[Tensor], states: Sequence[Tensor], temperature: float) -> Tensor:
    """KL(p, q) + KL(q, p), summed over levels, mean over the batch (scalar).

    p = softmax_k(-distance / (temperature * mean distance of the items at that level)) is the code distribution of an
    item, and q that of the state before it, by the same mean. So nothing is gained by a smaller scale of all.

    Args:
        items: distances of the items, L tensors float32 [B, C_l].
        states: distances of the projected states, of the same shapes.
        temperature: above 0.
    """
    terms = []
    for mine, theirs in zip(items, states, strict=True):
        width = temperature * mine.mean()
        p, q = F.log_softmax(-mine / width, dim=1), F.log_softmax(-theirs / width, dim=1)
        terms.append(((p.exp() - q.exp()) * (p - q)).sum(1).mean())
    return torch.stack(terms).sum()


def preference_semantic_alignment(states: Tensor, items: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """InfoNCE of states and items in both directions: the sum of two cross entropies, each a mean over the batch.

    Row i of each is compared with all rows of the other by cos / temperature. Rows with the same item as row i are no
    competitors of it.

    Args:
        states: projected states, float32 [B, D].
        items: reconstructions of the items, float32 [B, D].
        targets: the items, int64 [B].
        temperature: above 0.
    """
    scores = F.normalize(states, dim=1) @ F.normalize(items, dim=1).T / temperature
    same = (targets[:, None] == targets).fill_diagonal_(False)
    scores = scores.masked_fill(same, float("-inf"))
    answers = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores, answers) + F.cross_entropy(scores.T, answers)


class Refinable(nn.Module, ABC):
    """A fitted residual quantizer as a network whose parameters are trained."""

    @property
    @abstractmethod
    def codebooks(self) -> Sequence[Codebook]:
        """One per level."""

    @abstractmethod
    def scaled(self, x: Tensor) -> Tensor:
        """The items `x`, float32 [B, D], in the units of the network."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Latents, float32 [B, d], of scaled items [B, D]."""

    @abstractmethod
    def decode(self, total: Tensor) -> Tensor:
        """Scaled items, float32 [B, D], from sums of codes [B, d]."""

    @abstractmethod
    def own_loss(self, x: Tensor) -> Tensor:
        """The loss of the tokenizer alone on scaled items [B, D] (scalar)."""

    @abstractmethod
    def quantizer(self) -> Quantizer:
        """The quantizer with the present parameters."""


class RefinableKMeans(Refinable):
    """Residual k-means with a shift: z = x + outer(relu(inner(x))), and the sum of the codes is the reconstruction.

    Its own loss is |z - x|^2, which keeps the items where their texts put them, plus |sg(r_l) - c_l|^2 of each level,
    as means over elements. Without alignments the shift stays as it is.

    Args:
        fitted: the quantizer.
        x: vectors of the items, float32 [N, D]; they give the units.
    """

    def __init__(self, fitted: RQKMeans, x: np.ndarray) -> None:
        super().__init__()
        self._fitted = fitted
        # A power of 2, so that scaling is exact in floating point.
        self._scale = 2.0 ** round(math.log2(float(x.std(axis=0, dtype=np.float64).mean()) or 1.0))
        self._codebooks = nn.ModuleList(LearnedCodebook(*each.shape) for each in fitted.codebooks)
        for codebook, codes in zip(self.codebooks, fitted.codebooks, strict=True):
            codebook.place(torch.from_numpy(codes / self._scale))
        self.inner, self.outer = nn.Linear(fitted.dims, HIDDEN), nn.Linear(HIDDEN, fitted.dims, bias=False)
        nn.init.zeros_(self.outer.weight)
        if (shift := fitted.shift) is not None:
            with torch.no_grad():
                self.inner.weight.copy_(torch.from_numpy(shift.inner.T * self._scale))
                self.inner.bias.copy_(torch.from_numpy(shift.bias))
                self.outer.weight.copy_(torch.from_numpy(shift.outer.T / self._scale))

    @property
    def codebooks(self) -> Sequence[LearnedCodebook]:
        return self._codebooks  # type: ignore[return-value]

    def scaled(self, x: Tensor) -> Tensor:
        return x / self._scale

    def encode(self, x: Tensor) -> Tensor:
        shift: Tensor = self.outer(F.relu(self.inner(x)))
        return x + shift

    def decode(self, total: Tensor) -> Tensor:
        return total

    def own_loss(self, x: Tensor) -> Tensor:
        z = self.encode(x)
        found, loss = chain(z.detach(), self.codebooks), F.mse_loss(z, x)
        for codebook, index, residual in zip(self.codebooks, found.codes.T, found.residuals, strict=True):
            loss = loss + codebook.loss(residual, codebook.effective()[index], beta=0.0)
        return loss

    def quantizer(self) -> RQKMeans:
        def array(tensor: Tensor, factor: float = 1.0) -> np.ndarray:
            return np.ascontiguousarray((tensor.detach() * factor).cpu().numpy())

        inner, outer = array(self.inner.weight.T, 1 / self._scale), array(self.outer.weight.T, self._scale)
        codebooks = [array(codebook.codes, self._scale) for codebook in self.codebooks]
        return self._fitted.trained(codebooks, Shift(inner, array(self.inner.bias), outer))


class RefinableRQVAE(Refinable):
    """An RQ-VAE: its own loss is the squared error of the reconstruction plus the quantization loss, without the other
    terms of `LossConfig` and without samples: each level takes the nearest code.

    Args:
        fitted: the quantizer, which does not change.
    """

    def __init__(self, fitted: RQVAE) -> None:
        super().__init__()
        self._fitted = fitted
        self.model = copy.deepcopy(fitted.model).eval()

    @property
    def codebooks(self) -> Sequence[Codebook]:
        return self.model.codebooks

    def scaled(self, x: Tensor) -> Tensor:
        return self.model.standardise(x)

    def encode(self, x: Tensor) -> Tensor:
        return self.model.encode(x)

    def decode(self, total: Tensor) -> Tensor:
        return self.model.decode(total)

    def own_loss(self, x: Tensor) -> Tensor:
        z = self.encode(x)
        quantized = self.model.quantize(z)
        joined = z + (quantized.joined - z).detach()
        return F.mse_loss(self.decode(joined), x) + quantized.loss

    def quantizer(self) -> RQVAE:
        other = copy.copy(self._fitted)
        other.model = copy.deepcopy(self.model)
        return other


def refinable(quantizer: Quantizer, x: np.ndarray) -> Refinable:
    """The network of a fitted quantizer, for the items `x`, float32 [N, D].

    Raises:
        TypeError: a quantizer that `RefineConfig.check` refuses.
    """
    if isinstance(quantizer, RQVAE):
        return RefinableRQVAE(quantizer)
    if type(quantizer) is RQKMeans:
        return RefinableKMeans(quantizer, x)
    raise TypeError(f"{type(quantizer).__name__} has no residual codes that can be trained")


def refined(
    quantizer: Quantizer, x: np.ndarray, states: np.ndarray, targets: np.ndarray, settings: RefineConfig, seed: int
) -> Quantizer:
    """Train a quantizer further on M pairs of a history and the next item.

    Args:
        quantizer: fitted; stays as it is.
        x: what the quantizer gets for the N items, float32 [N, D].
        states: hidden states of the language model after the histories, float32 [M, H].
        targets: the next items, rows of `x`, int64 [M].
        settings: weights and schedule.
        seed: of the draws and of the initial weights.

    Raises:
        UserError: the loss is no longer a finite number.
        TypeError: as for `refinable`.
    """
    device = resolve_device("auto")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = refinable(quantizer, x).to(device)
    items = network.scaled(torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(device))
    spread = torch.from_numpy(states).to(device)
    spread = (spread - spread.mean(0)) / spread.std(0, correction=0).mean().clamp_min(1e-12)
    alignment = _Alignment(network, items, spread, torch.from_numpy(targets).to(device), settings)
    parameters = [*network.parameters(), *alignment.parameters()]
    optimizer = torch.optim.Adam([each for each in parameters if each.requires_grad], lr=settings.learning_rate)
    steps = settings.tokenizer_epochs * math.ceil(len(targets) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    rng = torch.Generator().manual_seed(seed)
    first = last = math.nan
    for epoch in track(range(settings.tokenizer_epochs), "refine", unit="epochs"):
        total = 0.0
        for rows in torch.randperm(len(targets), generator=rng).split(BATCH):
            drawn = torch.randint(len(items), (BATCH,), generator=rng).to(device)
            loss = network.own_loss(items[drawn]) + alignment(rows.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        last = total / len(targets)
        first = last if epoch == 0 else first
        if not math.isfinite(last):
            raise UserError(
                f"the refinement of the tokenizer diverged in epoch {epoch + 1} (loss {last}); lower "
                f"--refine.learning_rate (now {settings.learning_rate})"
            )
    log.info("refine: loss %.4f in the first epoch, %.4f in the last", first, last)
    return network.quantizer()


class _Alignment(nn.Module):
    """The weighted sum of the two alignments, and the projections that it trains.

    Args:
        network: the tokenizer.
        items: scaled, float32 [N, D].
        states: float32 [M, H].
        targets: int64 [M].
        settings: weights and temperature.
    """

    def __init__(
        self, network: Refinable, items: Tensor, states: Tensor, targets: Tensor, settings: RefineConfig
    ) -> None:
        super().__init__()
        # In a list, so that the network is no part of this module.
        self._network, self._items, self._states, self._targets = [network], items, states, targets
        self._settings = settings
        with torch.no_grad():
            z = torch.cat([network.encode(block) for block in items.split(BLOCK)])
        self.to_latents = _ridge(states, z[targets])
        self.to_items = _ridge(states, items[targets])

    def forward(self, rows: Tensor) -> Tensor:
        """The loss of the pairs `rows`, int64 [B]."""
        settings, network = self._settings, self._network[0]
        states, targets = self._states[rows], self._targets[rows]
        z = network.encode(self._items[targets])
        found, loss = chain(z, network.codebooks), z.new_zeros(())
        if settings.sequence_item:
            codebooks = [codebook.effective() for codebook in network.codebooks]
            own = code_distances(found.residuals, codebooks)
            theirs = code_distances(chain(self.to_latents(states), network.codebooks).residuals, codebooks)
            loss = loss + settings.sequence_item * sequence_item_alignment(own, theirs, settings.temperature)
        if settings.preference_semantic:
            # Straight through: the gradient goes to the codes and to the latents.
            reconstruction = network.decode(found.total + z - z.detach())
            term = preference_semantic_alignment(self.to_items(states), reconstruction, targets, SIMILARITY)
            loss = loss + settings.preference_semantic * term
        return loss


def _ridge(states: Tensor, values: Tensor) -> nn.Linear:
    """The ridge regression of `values`, float32 [M, d], on centred `states`, float32 [M, H], as a linear layer."""
    x, y, mean = states.double(), values.double(), values.double().mean(0)
    gram = x.T @ x
    penalty = PENALTY * gram.diagonal().mean().clamp_min(1e-12)
    gram = gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    layer = nn.Linear(states.shape[1], values.shape[1], device=states.device)
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.solve(gram, x.T @ (y - mean)).T)
        layer.bias.copy_(mean)
    return layer
