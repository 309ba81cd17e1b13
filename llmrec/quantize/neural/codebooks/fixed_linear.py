"""Codes frozen where k-means put them, under one learned map: SimVQ's idea (arXiv 2411.02038), placed by the data."""

import torch
from torch import Tensor, nn

from llmrec.quantize.neural.codebooks.base import PlacedCodebook


class FixedLinearCodebook(PlacedCodebook):
    """C W^T with C frozen once placed and W a learned matrix that starts as the identity."""

    frozen: Tensor

    def __init__(self, codes: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.zeros(codes, dims))
        self.map = nn.Linear(dims, dims, bias=False)
        nn.init.eye_(self.map.weight)

    def effective(self) -> Tensor:
        return self.map(self.frozen)

    @torch.no_grad()
    def place(self, codes: Tensor) -> None:
        self.frozen.copy_(codes)
