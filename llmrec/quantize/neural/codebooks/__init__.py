"""The codebooks of an RQ-VAE, one per level, behind one interface."""

from llmrec.quantize.config import TokenizeConfig
from llmrec.quantize.neural.codebooks.base import (
    Codebook,
    MovableCodebook,
    PlacedCodebook,
    nearest_code,
    squared_distances,
)
from llmrec.quantize.neural.codebooks.ema import EMACodebook
from llmrec.quantize.neural.codebooks.fixed_linear import FixedLinearCodebook
from llmrec.quantize.neural.codebooks.fsq import GridCodebook
from llmrec.quantize.neural.codebooks.learned import LearnedCodebook
from llmrec.quantize.neural.codebooks.simvq import SimVQCodebook

__all__ = ["Codebook", "MovableCodebook", "PlacedCodebook", "build_codebooks", "nearest_code", "squared_distances"]


def build_codebooks(config: TokenizeConfig) -> list[Codebook]:
    """The codebooks [L] that `config` asks for, not placed yet."""
    settings = config.rq_vae
    codebooks: list[Codebook] = []
    for level, codes in enumerate(config.level_sizes):
        match settings.codebook:
            case "learned":
                codebooks.append(LearnedCodebook(codes, settings.latent))
            case "ema":
                codebooks.append(EMACodebook(codes, settings.latent, settings.ema_decay))
            case "simvq":
                codebooks.append(SimVQCodebook(codes, settings.latent))
            case "fixed-linear":
                codebooks.append(FixedLinearCodebook(codes, settings.latent))
            case "fsq" | "fsq-symmetric":
                symmetric = settings.codebook == "fsq-symmetric"
                codebooks.append(GridCodebook(settings.grid, symmetric, level, config.levels))
    return codebooks
