"""The network of an RQ-VAE, and the functions that place, reset and fill its codes.

The network is an MLP encoder, a residual chain of L codebooks and an MLP decoder (TIGER, arXiv 2305.05065).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from llmrec.quantize.classical.kmeans import balanced_kmeans, kmeans
from llmrec.quantize.config import FSQ, TokenizeConfig
from llmrec.quantize.neural.codebooks import Codebook, GridBound, MovableCodebook, PlacedCodebook, build_codebooks
from llmrec.quantize.neural.estimators import JOINS, SQVAE, build_sampler
from llmrec.quantize.neural.words import WordDecoder


class Quantized(NamedTuple):
    """The output of the residual chain for a batch of latents."""

    codes: Tensor
    """Code of each level, int64 [B, L]."""
    joined: Tensor
    """Input of the decoder, float32 [B, d]: the sum of the codes' vectors, with the gradient of the estimator."""
    vectors: list[Tensor]
    """Vectors of the codes, L tensors float32 [B, d]; their gradient goes to their codebooks."""
    loss: Tensor
    """Quantization loss, summed over levels; scalar."""


class ResidualAutoencoder(nn.Module):
    """Encoder, L codebooks over its output, and decoder.

    The encoder reads, and the decoder writes, items standardised by `mean` and `std` (float32 [D] each).

    Args:
        dims: D, the dimensions of an item's embedding.
        config: sizes of the levels and, in `rq_vae`, of the network.
        vocabulary: the words of the text decoder; empty without one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dims: int, config: TokenizeConfig, vocabulary: Sequence[str] = ()) -> None:
        super().__init__()
        settings = config.rq_vae
        widths = [dims, *settings.hidden, settings.latent]
        self.encoder, self.decoder = _mlp(widths), _mlp(widths[::-1])
        if settings.codebook in FSQ:
            self.encoder.append(GridBound(settings.grid, settings.codebook == "fsq-symmetric", config.levels))
        self.codebooks = cast(Sequence[Codebook], nn.ModuleList(build_codebooks(config)))
        self.sampler = build_sampler(settings, config.levels, dims)
        self.head = nn.Linear(settings.latent, dims) if settings.loss.contrastive_of == "latents" else None
        self.words = WordDecoder(settings.latent, vocabulary) if vocabulary else None
        self.join = JOINS.get(settings.estimator)
        self.latent = settings.latent
        self.beta = settings.beta
        self.sinkhorn = settings.sinkhorn or [0.0] * config.levels
        self.training_dtype = torch.float32
        """Dtype of the matrix products of encoder and decoder in training; in inference they run in float32."""
        self.register_buffer("mean", torch.zeros(dims))
        self.register_buffer("std", torch.ones(dims))

    def standardise(self, x: Tensor) -> Tensor:
        """Return (x - mean) / std, the input of the encoder; `x` and the result are float32 [B, D]."""
        return (x - self.mean) / self.std.where(self.std > 0, 1.0)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents, float32 [B, d], of the standardised items `x`, float32 [B, D]."""
        with self._arithmetic():
            z = self.encoder(x)
        return z.float()

    def decode(self, z: Tensor) -> Tensor:
        """Return the standardised items, float32 [B, D], that the latents `z`, float32 [B, d], decode to."""
        with self._arithmetic():
            x = self.decoder(z)
        return x.float()

    def quantize(self, z: Tensor) -> Quantized:
        """Quantize the latents `z`, float32 [B, d], level by level.

        Level l picks a code for the residual r_l, and r_(l+1) = r_l - code. In training mode, the levels also sample
        soft codes, balance the batch over the codes and update moving averages, as the configuration says.

        The chain subtracts the detached code. With a straight-through copy, r - copy has no gradient, so the
        commitment losses of later levels would not reach `z`. Without the detach, the losses of later levels would
        also move the codebooks of earlier ones.
        """
        residual, total, loss = z, torch.zeros_like(z), z.new_zeros(())
        indices, vectors = [], []
        for level, codebook in enumerate(self.codebooks):
            codes = codebook.effective()
            if self.training and self.sampler is not None:
                code, index, level_loss = self.sampler(residual, codes, level)
            else:
                index = codebook.select(residual, codes, self.sinkhorn[level] if self.training else 0.0)
                code = codes[index]
                level_loss = codebook.loss(residual, code, self.beta)
            if self.training:
                codebook.update(residual.detach(), index)
            residual, total, loss = residual - code.detach(), total + code, loss + level_loss
            indices.append(index)
            vectors.append(code)
        joined = total if self.join is None else self.join(z, total)
        return Quantized(torch.stack(indices, dim=1), joined, vectors, loss)

    def prefixes(self, z: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """Return the sums of the vectors of the first 1, 2, ... L codes, with the gradient of the estimator.

        Args:
            z: latents, float32 [B, d].
            vectors: of their codes, L tensors float32 [B, d].

        Returns:
            float32 [B, L, d]; its last level is `Quantized.joined`.
        """
        sums = torch.stack(list(vectors), dim=1).cumsum(1)
        if self.join is None:
            return sums
        return self.join(z.repeat_interleave(len(vectors), dim=0), sums.flatten(0, 1)).view_as(sums)

    def sum_of_codes(self, index: Tensor) -> Tensor:
        """Return the sum, float32 [B, d], of the vectors of the codes `index`, int64 [B, l], of the first l levels."""
        total = self.mean.new_zeros(len(index), self.latent)
        for codebook, chosen in zip(self.codebooks, index.T, strict=False):
            total = total + codebook.effective()[chosen]
        return total

    def _arithmetic(self) -> torch.autocast:
        lower = self.training and self.training_dtype != torch.float32
        return torch.autocast(self.mean.device.type, torch.bfloat16, enabled=lower)


def _mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them; initialised as in LC-Rec: Xavier normal weights, biases of 0.

    Torch's default initialisation shrinks the differences between items in each layer: after LC-Rec's seven layers,
    all items have the same latent and so the same codes.
    """
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        linear = nn.Linear(width, following)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def place_codes(model: ResidualAutoencoder, data: Tensor, config: TokenizeConfig) -> None:
    """Initialise all codebooks of `model` from a sample of items, level by level on the residuals.

    Args:
        model: its codebooks are changed, and sigma^2 of an SQ-VAE sampler.
        data: standardised items, float32 [B, D].
        config: `rq_vae.init` says how to initialise.
    """
    residual = model.encode(data)
    for level, codebook in enumerate(model.codebooks):
        if isinstance(codebook, PlacedCodebook):
            codebook.place(_start(residual, config, level))
        codes = codebook.effective()
        code = codes[codebook.select(residual, codes)]
        if isinstance(model.sampler, SQVAE):
            model.sampler.start(level, residual, code)
        residual = residual - code


def _start(residual: Tensor, config: TokenizeConfig, level: int) -> Tensor:
    """Initial codes, float32 [C, d], of `level`, from its residuals `residual`, float32 [B, d]."""
    codes = config.level_sizes[level]
    if config.rq_vae.init == "random":
        # as in VQ-VAE (arXiv 1711.00937); does not look at the data
        return torch.empty(codes, residual.shape[1], device=residual.device).uniform_(-1 / codes, 1 / codes)
    place = kmeans if config.rq_vae.init == "kmeans++" else balanced_kmeans
    centroids = place(residual.cpu().numpy(), codes, config.iterations, config.seed + level)
    return torch.from_numpy(centroids).to(residual)


ROUNDS = 20
"""Most rounds that `fill_unused` spends on a level: a moved code may take the last item of another code."""


@torch.no_grad()
def reset_unused(model: ResidualAutoencoder, data: Tensor, used: list[Tensor], generator: torch.Generator) -> None:
    """Move each unused code onto the residual of a randomly drawn item.

    The probability of an item is proportional to the squared distance of its residual to the nearest code.

    Args:
        model: its codebooks are changed, the first level first.
        data: standardised items to draw from, float32 [B, D], B at least C.
        used: L tensors bool [C], True for a code that items used. All are set to False here, for the next round.
        generator: draws the items; on the CPU.
    """
    residual = model.encode(data)
    for codebook, taken in zip(model.codebooks, used, strict=True):
        dead = (~taken).nonzero().squeeze(1)
        if len(dead):
            _move(codebook, residual, dead, generator)
        residual = _left_by(codebook, residual)
        taken.zero_()


@torch.no_grad()
def fill_unused(model: ResidualAutoencoder, z: Tensor, generator: torch.Generator) -> None:
    """Move each code that no item uses onto the residual of a drawn item, as `reset_unused` does.

    Call it after training: a code with few items follows them too slowly and may end up with none.

    Args:
        model: its codebooks are changed, the first level first.
        z: latents of all items, float32 [N, d].
        generator: draws the items; on the CPU.
    """
    for codebook in model.codebooks:
        for _ in range(ROUNDS):
            codes = codebook.effective()
            dead = (codebook.select(z, codes).bincount(minlength=len(codes)) == 0).nonzero().squeeze(1)
            if len(dead) == 0:
                break
            _move(codebook, z, dead, generator)
        z = _left_by(codebook, z)


def _move(codebook: Codebook, residual: Tensor, dead: Tensor, generator: torch.Generator) -> None:
    """Move the codes `dead`, int64 [n], onto drawn rows of `residual`, float32 [B, d]."""
    assert isinstance(codebook, MovableCodebook), "the configuration lets only these be reset"
    # an item that equals its code keeps a tiny weight: multinomial needs len(dead) items of weight above 0
    weights = _left_by(codebook, residual).square().sum(1).clamp_min(torch.finfo(torch.float32).tiny).cpu()
    rows = torch.multinomial(weights, len(dead), generator=generator).to(residual.device)
    codebook.reset(dead, residual[rows])


def _left_by(codebook: Codebook, residual: Tensor) -> Tensor:
    """Return `residual` minus its nearest codes, both float32 [B, d]: the residual of the next level."""
    codes = codebook.effective()
    return residual - codes[codebook.select(residual, codes)]
