"""CoST's contrastive reconstruction (arXiv 2404.14774): an item's own reconstruction must be told from the others'.

A squared error wants every item rebuilt well for itself; this wants the items' neighbourhoods kept apart.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_reconstruction(x: Tensor, reconstruction: Tensor, temperature: float) -> Tensor:
    """-log softmax_j(cos(x_i, reconstruction_j) / temperature) at j = i, mean over the batch (scalar).

    Args:
        x: items, floats [B, D].
        reconstruction: their reconstructions, floats [B, D]; row i belongs to row i of `x`.
        temperature: positive; smaller ones sharpen.
    """
    cosines = F.normalize(x, dim=1) @ F.normalize(reconstruction, dim=1).T
    return F.cross_entropy(cosines / temperature, torch.arange(len(x), device=x.device))
