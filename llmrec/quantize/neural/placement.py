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
from llmrec.quantize.neural.codebooks import PlacedCodebook
from llmrec.quantize.neural.estimators.sq_vae import SQVAE


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
