"""The network of an RQ-VAE, and where its codes start.

MLP encoder, residual chain of codebooks, MLP decoder (TIGER, arXiv 2305.05065).
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


class Quantized(NamedTuple):
    """What the residual chain makes of a batch of latents."""

    codes: Tensor
    """Of every level, int64 [B, L]."""
    joined: Tensor
    """What the decoder gets: the value of the codes' sum, the gradient of the estimator; float32 [B, d]."""
    vectors: list[Tensor]
    """The codes themselves, with the gradient to their codebook; L times float32 [B, d]."""
    loss: Tensor
    """Quantization loss, summed over levels; scalar."""


class ResidualAutoencoder(nn.Module):
    """Encoder, L codebooks over its output, decoder; both ends see items standardised by `mean` and `std`."""

    mean: Tensor
    std: Tensor

    def __init__(self, dims: int, config: TokenizeConfig) -> None:
        super().__init__()
        settings = config.rq_vae
        widths = [dims, *settings.hidden, settings.latent]
        self.encoder, self.decoder = _mlp(widths), _mlp(widths[::-1])
        if settings.codebook in FSQ:
            self.encoder.append(GridBound(settings.grid, settings.codebook == "fsq-symmetric", config.levels))
        self.codebooks = cast(Sequence[Codebook], nn.ModuleList(build_codebooks(config)))
        self.sampler = build_sampler(settings, config.levels, dims)
        self.join = JOINS.get(settings.estimator)
        self.latent = settings.latent
        self.beta = settings.beta
        self.sinkhorn = settings.sinkhorn or [0.0] * config.levels
        self.training_dtype = torch.float32
        """Arithmetic of the networks' matrix products in training; in use they compute in float32."""
        self.register_buffer("mean", torch.zeros(dims))
        self.register_buffer("std", torch.ones(dims))

    def standardise(self, x: Tensor) -> Tensor:
        """Items as the encoder takes them; `x` and result float32 [B, D]."""
        return (x - self.mean) / self.std.where(self.std > 0, 1.0)

    def encode(self, x: Tensor) -> Tensor:
        """Latents (float32 [B, d]) of the standardised items `x` [B, D]."""
        with self._arithmetic():
            z = self.encoder(x)
        return z.float()

    def decode(self, z: Tensor) -> Tensor:
        """Standardised items (float32 [B, D]) of the latents `z` [B, d]."""
        with self._arithmetic():
            x = self.decoder(z)
        return x.float()

    def quantize(self, z: Tensor) -> Quantized:
        """The residual chain over the latents `z` [B, d]; in training it samples, balances and updates as configured.

        The residual subtracts the raw code: a straight-through copy would cut the later levels' commitment gradient
        to `z`. Detached, since each codebook answers for its own level alone.
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

    def sum_of_codes(self, index: Tensor) -> Tensor:
        """Sum (float32 [B, d]) of the codes `index` (int64 [B, l]) of the first l levels."""
        total = self.mean.new_zeros(len(index), self.latent)
        for codebook, chosen in zip(self.codebooks, index.T, strict=False):
            total = total + codebook.effective()[chosen]
        return total

    def _arithmetic(self) -> torch.autocast:
        lower = self.training and self.training_dtype != torch.float32
        return torch.autocast(self.mean.device.type, torch.bfloat16, enabled=lower)


def _mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them. They start as LC-Rec's do: Xavier normal weights, biases of 0.

    Torch's default start shrinks the differences between items in each layer. After LC-Rec's seven layers all items
    have the same latent, and so the same codes.
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
    """Place all codebooks of `model` as `config` says, on the standardised items `data` (float32 [B, D])."""
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
    """Codes [C, d] for the first `residual` [B, d] of a level."""
    codes = config.level_sizes[level]
    if config.rq_vae.init == "random":
        # as in VQ-VAE (arXiv 1711.00937), blind to the data
        return torch.empty(codes, residual.shape[1], device=residual.device).uniform_(-1 / codes, 1 / codes)
    place = kmeans if config.rq_vae.init == "kmeans++" else balanced_kmeans
    centroids = place(residual.cpu().numpy(), codes, config.iterations, config.seed + level)
    return torch.from_numpy(centroids).to(residual)


ROUNDS = 20
"""Most rounds of filling a level: a moved code may take another's last item."""


@torch.no_grad()
def reset_unused(model: ResidualAutoencoder, data: Tensor, used: list[Tensor], generator: torch.Generator) -> None:
    """Move every code not `used` (L times bool [C]) onto a residual of its level, drawn by its squared error.

    Args:
        model: its codebooks are changed, the first level first.
        data: standardised items to draw from, float32 [B, D], B at least C.
        used: all set to False for the next round.
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
    """Move every code that none of all latents `z` [N, d] takes onto one of them, as `reset_unused` does.

    For the end of training: codes that few items take follow their items too slowly, and some fall behind.
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
    """Move the codes `dead` onto drawn rows of `residual` [B, d]."""
    assert isinstance(codebook, MovableCodebook), "the configuration lets only these be reset"
    # items that are on their codes have a chance too, should there be too few others
    weights = _left_by(codebook, residual).square().sum(1).clamp_min(torch.finfo(torch.float32).tiny).cpu()
    rows = torch.multinomial(weights, len(dead), generator=generator).to(residual.device)
    codebook.reset(dead, residual[rows])


def _left_by(codebook: Codebook, residual: Tensor) -> Tensor:
    """What the nearest codes leave of `residual` [B, d]."""
    codes = codebook.effective()
    return residual - codes[codebook.select(residual, codes)]
