"""The codebooks of an RQ-VAE, one per level.

Their codes are learned by gradient, are moving averages, are frozen vectors under a learned linear map (SimVQ,
arXiv 2411.02038), or are the points of a fixed grid (FSQ, arXiv 2309.15505).
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec.quantize.classical.kmeans import uniform_mapping
from llmrec.quantize.config import TokenizeConfig


class Codebook(nn.Module, ABC):
    """C codes of d dimensions: how residuals select them and how they learn."""

    @abstractmethod
    def effective(self) -> Tensor:
        """Return the vectors of the codes, float32 [C, d], that training, encoding and decoding use."""

    def select(self, residual: Tensor, codes: Tensor, epsilon: float = 0.0) -> Tensor:
        """Select a code for each residual.

        Args:
            residual: float32 [B, d].
            codes: the result of `effective`, float32 [C, d].
            epsilon: 0 selects the nearest code; above 0, LC-Rec's uniform mapping (`uniform_mapping`, arXiv
                2311.09049) spreads the batch evenly over the codes.

        Returns:
            Rows of `codes`, int64 [B].
        """
        if epsilon == 0:
            return nearest_code(residual, codes)
        with torch.no_grad():
            return uniform_mapping(squared_distances(residual, codes), epsilon).argmax(1)

    def loss(self, residual: Tensor, code: Tensor, beta: float) -> Tensor:
        """Return the codebook loss plus `beta` times the commitment loss, a scalar.

        With sg the stop-gradient, it is the mean over elements of (sg(r) - c)^2 + beta (r - sg(c))^2, where r is
        `residual` and c is `code`, both float32 [B, d].
        """
        return F.mse_loss(code, residual.detach()) + beta * F.mse_loss(residual, code.detach())

    def update(self, residual: Tensor, index: Tensor) -> None:
        """Update the codes without gradients; does nothing unless a subclass overrides it.

        Args:
            residual: float32 [B, d].
            index: the code of each residual, int64 [B].
        """


class PlacedCodebook(Codebook):
    """A codebook whose codes must be initialised from outside."""

    @abstractmethod
    def place(self, codes: Tensor) -> None:
        """Initialise the codes with `codes`, float32 [C, d]."""


class MovableCodebook(PlacedCodebook):
    """A codebook whose single codes can also be moved during training."""

    @abstractmethod
    def reset(self, dead: Tensor, vectors: Tensor) -> None:
        """Set the codes `dead`, int64 [n], to `vectors`, float32 [n, d]."""


@torch.no_grad()
def nearest_code(residual: Tensor, codes: Tensor) -> Tensor:
    """Return the row of `codes`, float32 [C, d], nearest to each row of `residual`, float32 [B, d], as int64 [B]."""
    # |r - c|^2 - |r|^2: |r|^2 is the same for all codes, so the order does not change
    return torch.addmm(codes.square().sum(1), residual, codes.T, alpha=-2).argmin(1)


def squared_distances(residual: Tensor, codes: Tensor) -> Tensor:
    """Return the squared distance, float32 [B, C], of each residual, float32 [B, d], to each code, float32 [C, d]."""
    cross = torch.addmm(codes.square().sum(1), residual, codes.T, alpha=-2)
    return (cross + residual.square().sum(1, keepdim=True)).clamp_min(0)


class LearnedCodebook(MovableCodebook):
    """Codes that are parameters; the gradient of the codebook loss moves each code towards its residuals."""

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
"""Added to the moving count of each code, so that the sum of an unused code is not divided by 0."""


RESET_COUNT = 1.0
"""Moving count that a reset code starts with."""


class EMACodebook(MovableCodebook):
    """Codes c_k = s_k / n_k, with s_k the moving sum and n_k the moving count of the residuals of code k.

    As in arXiv 2203.01941, the codes get no gradient: s_k <- decay s_k + (1 - decay) (sum of the batch), and n_k alike.

    Args:
        codes: C.
        dims: d.
        decay: share of the old average that an update keeps, 0 to 1.
    """

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
        """Return the commitment loss alone, `beta` times the mean squared error: the codes get no gradient."""
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
    """Codes C W^T (arXiv 2411.02038): `place` sets C, which then stays frozen; W is learned, from the identity on."""

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
    """Codes C W^T + b (SimVQ, arXiv 2411.02038): C is drawn once from N(0, 1 / d) and frozen; W and b are learned.

    Both the search for the nearest code and the decoding use the mapped codes.
    """

    frozen: Tensor

    def __init__(self, codes: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.randn(codes, dims) * dims**-0.5)
        self.map = nn.Linear(dims, dims)

    def effective(self) -> Tensor:
        return self.map(self.frozen)


class GridBound(nn.Module):
    """Last layer of an FSQ encoder: it maps each axis of the latents into the range of the grid, and 0 to 0.

    For latents z, float32 [B, levels * axes]: (tanh(z + shift) * reach - offset) / scale.

    Args:
        grid: number of values per axis of one level, e.g. [8, 6, 5].
        symmetric: round about 0, so that an axis of v values gets 2 (v // 2) + 1 of them.
        levels: L.
    """

    reach: Tensor
    offset: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, grid: list[int], symmetric: bool, levels: int) -> None:
        super().__init__()
        values = torch.tensor(grid * levels, dtype=torch.float64)
        scale = values.div(2, rounding_mode="floor")
        # 1 + 1e-3: without it, the shift of an axis of 2 values would be atanh(1) = infinity
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
    """The codes are all points of a grid (FSQ, arXiv 2309.15505); each level has its own slice of the latent's axes.

    The latent is the output of `GridBound`. The number of a code is the sum over axes of digit * basis: with 8, 6 and
    5 values per axis, digit_0 + 8 digit_1 + 48 digit_2.

    Args:
        grid: number of values per axis of one level.
        symmetric: as in `GridBound`.
        level: number of this level, from 0.
        levels: L.
    """

    codes: Tensor
    scale: Tensor
    basis: Tensor
    highest: Tensor

    def __init__(self, grid: list[int], symmetric: bool, level: int, levels: int) -> None:
        super().__init__()
        values = torch.tensor([2 * (axis // 2) + 1 if symmetric else axis for axis in grid])
        basis = torch.cat([torch.ones(1, dtype=torch.int64), values[:-1].cumprod(0)])
        scale = torch.tensor(grid) // 2
        digits = torch.arange(int(values.prod()))[:, None] // basis % values
        self.slice = slice(level * len(grid), (level + 1) * len(grid))
        self.register_buffer("highest", values - 1, persistent=False)
        codes = torch.zeros(len(digits), levels * len(grid))
        codes[:, self.slice] = (digits - scale) / scale
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("basis", basis, persistent=False)

    def effective(self) -> Tensor:
        return self.codes

    @torch.no_grad()
    def select(self, residual: Tensor, codes: Tensor, epsilon: float = 0.0) -> Tensor:
        """Round each axis of `residual`, float32 [B, d], to the grid; return the number of that point, int64 [B].

        A value beyond the ends of its axis takes the last value there: `GridBound` goes past the ends by a thousandth
        of the axis, which is more than half a step if the axis has more than 1,001 values.
        """
        digits = (residual[:, self.slice] * self.scale).round().long() + self.scale
        digits = digits.clamp_min(0).minimum(self.highest)
        return (digits * self.basis).sum(1)

    def loss(self, residual: Tensor, code: Tensor, beta: float) -> Tensor:
        """Return 0: the points of a grid do not move, and the encoder needs no commitment loss."""
        return residual.new_zeros(())


__all__ = ["Codebook", "MovableCodebook", "PlacedCodebook", "build_codebooks", "nearest_code", "squared_distances"]


def build_codebooks(config: TokenizeConfig) -> list[Codebook]:
    """Return the L codebooks that `config` asks for; each `PlacedCodebook` still needs `place`."""
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
