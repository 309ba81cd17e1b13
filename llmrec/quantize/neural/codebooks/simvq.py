"""SimVQ: frozen random codes under one learned map (arXiv 2411.02038).

A step on any code moves the map and with it all codes, so none is left behind unused.
"""

import torch
from torch import Tensor, nn

from llmrec.quantize.neural.codebooks.base import Codebook


class SimVQCodebook(Codebook):
    """W(C) with C drawn from N(0, 1 / d) once and W a learned linear map with bias, in lookup and decoding alike."""

    frozen: Tensor

    def __init__(self, codes: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.randn(codes, dims) * dims**-0.5)
        self.map = nn.Linear(dims, dims)

    def effective(self) -> Tensor:
        return self.map(self.frozen)
