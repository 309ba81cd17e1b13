"""Items as vectors beside their tokens: one space for what a language model is about to say and what items' texts say.

A head is trained with the model, by the cosine of its hidden state and the next item (LIGER, arXiv 2411.18814). What it
learns of texts carries over to items that no training has seen, whose codes tell a model little.

    index = DenseIndex.of(head, text_vectors)       # N items
    index.log_probabilities(hidden)                 # [B, N]
"""

import torch
from torch import nn
from torch.nn import functional as F

TEMPERATURE = 0.07
"""LIGER's: a cosine counts 1 / 0.07."""


WIDTH = 256
"""Of the hidden layer between a text vector and its place in the space."""


class DenseHead(nn.Module):
    """Puts hidden states [..., H] and text vectors [..., D] into one space of unit vectors [..., d].

    Args:
        hidden: H.
        text: D.
        dim: d.
    """

    def __init__(self, hidden: int, text: int, dim: int = 128) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, dim)
        self.item = nn.Sequential(nn.Linear(text, WIDTH), nn.ReLU(), nn.Linear(WIDTH, dim))
        self.straight = nn.Linear(text, dim, bias=False)

    def queries(self, hidden: torch.Tensor) -> torch.Tensor:
        """Unit vectors of hidden states."""
        return F.normalize(self.query(hidden), dim=-1)

    def items(self, vectors: torch.Tensor) -> torch.Tensor:
        """Unit vectors of items, from the vectors of their texts."""
        return F.normalize(self.straight(vectors) + self.item(vectors), dim=-1)

    @property
    def text_dims(self) -> int:
        """D, dimensions of the text vectors."""
        first = self.item[0]
        assert isinstance(first, nn.Linear)
        return first.in_features
