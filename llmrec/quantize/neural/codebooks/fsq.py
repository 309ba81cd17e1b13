"""Finite scalar quantization: codes are the points of a fixed grid (arXiv 2309.15505).

`GridBound`, at the end of the encoder, squeezes every axis into the grid's range; from there on a level is like
any other: its codes are the grid points on the level's own slice of the latent, 0 elsewhere, so that the sum of the
levels' codes is their concatenation and the nearest code is the one that rounding gives.

Two readings: the paper's, L values per axis (-L/2 .. L/2 - 1 for even L), and the symmetric one,
round(L // 2 * tanh z), which has 2 * (L // 2) + 1. Either is scaled by 1 / (L // 2).
"""

import torch
from torch import Tensor, nn

from llmrec.quantize.neural.codebooks.base import Codebook


class GridBound(nn.Module):
    """Latents [B, levels * axes] squeezed into the grid's range, axis by axis, 0 staying 0."""

    reach: Tensor
    offset: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, grid: list[int], symmetric: bool, levels: int) -> None:
        super().__init__()
        values = torch.tensor(grid * levels, dtype=torch.float64)
        scale = values.div(2, rounding_mode="floor")
        # 1 + 1e-3: tanh alone would round to the outermost values at infinity only
        reach = scale if symmetric else (values - 1) * (1 + 1e-3) / 2
        offset = torch.zeros_like(values) if symmetric else 0.5 * (values % 2 == 0)
        for name, buffer in {
            "reach": reach,
            "offset": offset,
            "shift": (offset / reach).atanh(),
            "scale": scale,
        }.items():
            self.register_buffer(name, buffer.float(), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        return ((z + self.shift).tanh() * self.reach - self.offset) / self.scale


class GridCodebook(Codebook):
    """All points of a grid over one level's slice of the bounded latent; index = sum over axes of digit * basis."""

    codes: Tensor
    scale: Tensor
    basis: Tensor

    def __init__(self, grid: list[int], symmetric: bool, level: int, levels: int) -> None:
        super().__init__()
        values = torch.tensor([2 * (axis // 2) + 1 if symmetric else axis for axis in grid])
        basis = torch.cat([torch.ones(1, dtype=torch.int64), values[:-1].cumprod(0)])
        scale = torch.tensor(grid) // 2
        digits = torch.arange(int(values.prod()))[:, None] // basis % values
        self.slice = slice(level * len(grid), (level + 1) * len(grid))
        codes = torch.zeros(len(digits), levels * len(grid))
        codes[:, self.slice] = (digits - scale) / scale
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("basis", basis, persistent=False)

    def effective(self) -> Tensor:
        return self.codes

    @torch.no_grad()
    def select(self, residual: Tensor, codes: Tensor, epsilon: float = 0.0) -> Tensor:
        """Index (int64 [B]) of the grid point that every axis of the bounded `residual` [B, d] rounds to."""
        digits = (residual[:, self.slice] * self.scale).round().long() + self.scale
        return (digits * self.basis).sum(1)

    def loss(self, residual: Tensor, code: Tensor, beta: float) -> Tensor:
        """0: a grid neither moves nor needs the encoder's commitment."""
        return residual.new_zeros(())
