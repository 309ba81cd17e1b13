"""R3-VAE's two regularizers (arXiv 2604.11440): semantic cohesion of an ID, and discrimination between codes."""

import torch
import torch.nn.functional as F
from torch import Tensor

SHARPNESS = 2.0
"""Weight of a cosine distance in `spread`, as in the paper."""


def cohesion(vectors: Tensor, target: Tensor) -> Tensor:
    """Cosine distance between an item and what each prefix of its semantic ID stands for, mean over items and levels.

    Low if already the first codes point where the item does, not only the sum of all.

    Args:
        vectors: the codes of every item, floats [B, L, d].
        target: what their sum stands for (the latent), floats [B, d].
    """
    prefixes = vectors.cumsum(dim=1)
    return 1 - F.cosine_similarity(prefixes, target[:, None], dim=2).mean()


def spread(codebook: Tensor) -> Tensor:
    """log mean exp(-2 * cosine distance) over the pairs of different rows of `codebook` (floats [C, d], C > 1).

    A scalar of at most 0, which it is if all codes point one way; orthogonal codes give -2.
    """
    unit = F.normalize(codebook, dim=1)
    rows, columns = torch.triu_indices(len(unit), len(unit), offset=1, device=unit.device)
    exponents = SHARPNESS * ((unit @ unit.T)[rows, columns] - 1)
    return exponents.exp().mean().log()
