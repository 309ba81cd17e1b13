"""Codes learned by gradient descent: VQ-VAE (arXiv 1711.00937), per level in RQ-VAE (TIGER, arXiv 2305.05065)."""

import torch
from torch import Tensor, nn

from llmrec.quantize.neural.codebooks.base import MovableCodebook


class LearnedCodebook(MovableCodebook):
    """Codes that are parameters; the codebook loss draws them to their residuals."""

    def __init__(self, codes: int, dims: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(codes, dims))

    def effective(self) -> Tensor:
        return self.codes

    @torch.no_grad()
    def place(self, codes: Tensor) -> None:
        self.codes.copy_(codes)

    @torch.no_grad()
    def reset(self, dead: Tensor, vectors: Tensor) -> None:
        self.codes[dead] = vectors
