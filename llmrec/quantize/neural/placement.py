"""Where the codes of an RQ-VAE start.

On the centroids of the first latents, as in TIGER (arXiv 2305.05065): k-means, or k-means with clusters of limited
size as in LETTER (arXiv 2405.07314), under which no code starts with hardly an item. Level by level, since every
codebook sees what the ones before it leave.
"""

import torch
from torch import Tensor

from llmrec.quantize.classical.kmeans import balanced_kmeans, kmeans
from llmrec.quantize.config import TokenizeConfig
from llmrec.quantize.neural.autoencoder import ResidualAutoencoder
from llmrec.quantize.neural.codebooks import Codebook, MovableCodebook, PlacedCodebook
from llmrec.quantize.neural.estimators import SQVAE


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
