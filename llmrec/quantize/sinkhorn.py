"""Uniform mapping of vectors to codes by Sinkhorn's algorithm, as LC-Rec does it (arXiv 2311.09049)."""

import torch
from torch import Tensor


@torch.no_grad()
def uniform_mapping(distances: Tensor, epsilon: float, iterations: int = 50) -> Tensor:
    """Transport plan (float64 [..., B, K]) that spreads B vectors evenly over K codes; a row's code is its argmax.

    Column sums are B / K; row sums tend to 1 with the iterations. The smaller `epsilon`, the closer the plan keeps
    to the nearest codes and the slower it evens out.

    Args:
        distances: squared distances, floats [B, K], or a stack [..., B, K] of problems, each solved alone.
        epsilon: strength of the entropy term, above 0, on distances scaled to -1..1.
        iterations: rounds of dividing rows, then columns, by their sums.
    """
    vectors, codes = distances.shape[-2:]
    distances = distances.double()  # exp(-2 / .003) is below float32
    high, low = distances.amax((-2, -1), keepdim=True), distances.amin((-2, -1), keepdim=True)
    distances = distances / ((high - low) / 2 + 1e-5)
    # the rows are divided by their sums first of all, so each may start from its own minimum, out of exp's overflow
    kernel = (distances.amin(-1, keepdim=True) - distances).div_(epsilon).exp_()
    # the rounds as two factors of the kernel: the same plan for two matrix-vector products each
    columns = kernel.new_ones(*kernel.shape[:-2], codes, 1)
    for _ in range(iterations):
        rows = _reciprocal(kernel @ columns, vectors)
        columns = _reciprocal(kernel.mT @ rows, codes)
    return kernel.mul_(rows).mul_(columns.mT).mul_(vectors)


def _reciprocal(sums: Tensor, count: int) -> Tensor:
    """1 / (sums * count), finite for a code so far from all vectors that its sum underflows."""
    return sums.mul_(count).clamp_min_(torch.finfo(torch.float64).tiny).reciprocal_()
