"""The codebooks of an RQ-VAE, one per level: learned, moving averages, fixed with a learned map (SimVQ), and grids."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec.quantize.classical.kmeans import uniform_mapping
from llmrec.quantize.config import TokenizeConfig


class Codebook(nn.Module, ABC):
    """C codes of d dimensions: how they are found, learned and moved."""

    @abstractmethod
    def effective(self) -> Tensor:
        """The codes as training and decoding see them, float32 [C, d]."""

    def select(self, residual: Tensor, codes: Tensor, epsilon: float = 0.0) -> Tensor:
        """Index (int64 [B]) into `codes` [C, d], which `effective` gave, for each residual [B, d].

        The nearest code; with `epsilon` above 0, the code that LC-Rec's uniform mapping of the batch gives.
        """
        if epsilon == 0:
            return nearest_code(residual, codes)
        with torch.no_grad():
            return uniform_mapping(squared_distances(residual, codes), epsilon).argmax(1)

    def loss(self, residual: Tensor, code: Tensor, beta: float) -> Tensor:
        """Mean over elements of |sg r - c|^2 + beta |r - sg c|^2, scalar; `residual` and `code` are [B, d]."""
        return F.mse_loss(code, residual.detach()) + beta * F.mse_loss(residual, code.detach())

    def update(self, residual: Tensor, index: Tensor) -> None:
        """Learn, without gradients, from the residuals [B, d] that took the codes `index` [B]; most don't."""


class PlacedCodebook(Codebook):
    """Its codes need a place to start."""

    @abstractmethod
    def place(self, codes: Tensor) -> None:
        """Start from `codes` [C, d]."""


class MovableCodebook(PlacedCodebook):
    """Its codes can be moved in the course of training, too."""

    @abstractmethod
    def reset(self, dead: Tensor, vectors: Tensor) -> None:
        """Move the codes `dead` (int64 [n]) onto `vectors` [n, d]."""


@torch.no_grad()
def nearest_code(residual: Tensor, codes: Tensor) -> Tensor:
    """Row of the code [C, d] nearest to each residual [B, d], int64 [B]."""
    # |r - c|^2 without |r|^2, which does not change the order
    return torch.addmm(codes.square().sum(1), residual, codes.T, alpha=-2).argmin(1)


def squared_distances(residual: Tensor, codes: Tensor) -> Tensor:
    """Squared distance (float32 [B, C]) of every residual [B, d] to every code [C, d]."""
    cross = torch.addmm(codes.square().sum(1), residual, codes.T, alpha=-2)
    return (cross + residual.square().sum(1, keepdim=True)).clamp_min(0)


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


SMOOTHING = 1e-5
"""Count added to every code, so that an unused one divides by more than 0."""


RESET_COUNT = 1.0
"""Moving count that a reset code starts with."""


class EMACodebook(MovableCodebook):
    """Codes s_k / n_k of the moving sum s_k and the moving count n_k of their residuals; no gradient."""

    codes: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, codes: int, dims: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("codes", torch.zeros(codes, dims))
        self.register_buffer("sums", torch.zeros(codes, dims))
        self.register_buffer("counts", torch.ones(codes))

    def effective(self) -> Tensor:
        return self.codes

    def loss(self, residual: Tensor, code: Tensor, beta: float) -> Tensor:
        """The commitment loss alone: averages follow no gradient."""
        return beta * F.mse_loss(residual, code)

    @torch.no_grad()
    def update(self, residual: Tensor, index: Tensor) -> None:
        counts = torch.bincount(index, minlength=len(self.codes)).to(self.counts)
        sums = torch.zeros_like(self.sums).index_add_(0, index, residual)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + SMOOTHING) / (total + len(self.codes) * SMOOTHING) * total
        torch.div(self.sums, smoothed[:, None], out=self.codes)

    @torch.no_grad()
    def place(self, codes: Tensor) -> None:
        self.reset(torch.arange(len(codes), device=codes.device), codes)

    @torch.no_grad()
    def reset(self, dead: Tensor, vectors: Tensor) -> None:
        self.codes[dead] = vectors
        self.counts[dead] = RESET_COUNT
        self.sums[dead] = vectors * RESET_COUNT


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


class SimVQCodebook(Codebook):
    """W(C) with C drawn from N(0, 1 / d) once and W a learned linear map with bias, in lookup and decoding alike."""

    frozen: Tensor

    def __init__(self, codes: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.randn(codes, dims) * dims**-0.5)
        self.map = nn.Linear(dims, dims)

    def effective(self) -> Tensor:
        return self.map(self.frozen)


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
