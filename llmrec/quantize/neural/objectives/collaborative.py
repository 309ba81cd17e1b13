"""LETTER's collaborative alignment (arXiv 2405.07314): quantized items match vectors learned from behaviour."""

import torch
import torch.nn.functional as F
from torch import Tensor


def collaborative_alignment(quantized: Tensor, vectors: Tensor, temperature: float) -> Tensor:
    """-log softmax_j(<quantized_i, vectors_j> / temperature) at j = i, mean over the rows that have a vector (scalar).

    Args:
        quantized: sums of codes, floats [B, d].
        vectors: frozen collaborative vectors, floats [B, d]. A row of zeros marks an item without behaviour; it is
            neither asked nor offered as an answer. 0 if all rows are such.
        temperature: positive; smaller ones sharpen.
    """
    known = vectors.any(dim=1)
    scores = quantized[known] @ vectors[known].T / temperature
    answers = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores, answers, reduction="sum") / max(len(scores), 1)
