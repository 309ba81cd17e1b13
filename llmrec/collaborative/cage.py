"""Item vectors with a learnt tree of categories: CAGE (Liu et al., WWW 2024, arXiv 2308.16761).

Each of M items has a vector e of its own. The first of L codebooks has most codes: q_1 is the code nearest to e, q_2
the code of the second codebook nearest to q_1, and so on. So the code at a level decides all codes above it: the codes
are the categories of a tree, which is learnt with the model. The item's vector is e plus the mean of q_1 ... q_L.

The loss beside the model's own, as in the authors' code, has for each level, with q_0 = e and sg the stop-gradient,
mean (q_l - sg(q_(l-1)))^2 + beta mean (q_(l-1) - sg(q_l))^2, and the cross-entropy of predicting the next item's code
from the model's state.
"""

import torch
from torch import nn
from torch.nn import functional as F

from llmrec.errors import UserError

BETA = 0.25
"""Weight of the loss that draws a vector to its code, relative to 1 for the loss that draws the code (the authors')."""


BLOCK = 16_384
"""Number of vectors whose distances to the codes are in memory at a time."""


def cage_sizes(n_items: int, levels: int) -> list[int]:
    """Codes of each of L levels, most first: b^L, ..., b^2, b with b = M^(1 / (L + 1)), rounded (the authors' rule)."""
    branches = round(n_items ** (1 / (levels + 1)))
    return [branches ** (levels - level) for level in range(levels)]


class CageTable(nn.Module):
    """Stands for an `nn.Embedding` of M items.

    Args:
        items: the vectors e of the items, and of rows for padding, if any.
        sizes: codes of each level, the first level first.
    """

    def __init__(self, items: nn.Embedding, sizes: list[int]) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = items.num_embeddings, items.embedding_dim
        self.items = items
        std, dim = float(items.weight.detach().std()), self.embedding_dim
        self.codebooks = nn.ParameterList([std * torch.randn(size, dim) for size in sizes])
        self.transform = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.LayerNorm(dim))
        self.heads = nn.ModuleList([nn.Linear(dim, size) for size in sizes])

    def codes(self, vectors: torch.Tensor) -> torch.Tensor:
        """The codes of vectors e, float [n, D] -> int64 [n, L]."""
        found, codes = vectors.detach(), []
        for codebook in self.codebooks:
            with torch.autocast(vectors.device.type, enabled=False):  # in bfloat16 close codes would tie
                nearest = [torch.cdist(block, codebook.detach()).argmin(1) for block in found.split(BLOCK)]
            codes.append(torch.cat(nearest))
            found = codebook.detach()[codes[-1]]
        return torch.stack(codes, 1)

    def _codewords(self, codes: torch.Tensor) -> torch.Tensor:
        """The codes' vectors, int64 [n, L] -> float [L, n, D]."""
        return torch.stack([codebook[chosen] for codebook, chosen in zip(self.codebooks, codes.T, strict=True)])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Vectors of items, int64 [...] -> float [..., D]."""
        own = self.items(rows.flatten())
        return (own + self._codewords(self.codes(own)).mean(0)).unflatten(0, rows.shape)

    @property
    def weight(self) -> torch.Tensor:
        """The vectors of all items, float [M, D]."""
        return self(torch.arange(self.num_embeddings, device=self.items.weight.device))

    def loss(self, states: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """The loss beside the model's own (scalar), from states float [E, D] and the next items int64 [E]."""
        below = self.items(following)
        codes = self.codes(below)
        found = self.transform(states)
        total = states.new_zeros((), dtype=torch.float32)
        for level, words in enumerate(self._codewords(codes)):
            total = total + F.mse_loss(words, below.detach()) + BETA * F.mse_loss(below, words.detach())
            total = total + F.cross_entropy(self.heads[level](found).float(), codes[:, level])
            below = words
        return total


def cage_table(items: nn.Embedding, n_items: int, levels: int, section: str) -> CageTable:
    """The table in place of `items`, which has the vectors of M items and may have a row for padding.

    Raises:
        UserError: so many levels leave a category one branch only.
    """
    sizes = cage_sizes(n_items, levels)
    if sizes[-1] < 2:
        raise UserError(f"--{section}.table.levels {levels}: {n_items} items do not fill a tree of so many levels.")
    return CageTable(items, sizes)
