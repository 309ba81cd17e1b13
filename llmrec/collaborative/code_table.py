"""Item vectors made of codewords: a few hundred codewords and one byte per code instead of one vector per item.

Each of M items has L codes, and level l has C codewords. With D dimensions, an item's vector is

    concat: its L codewords, of D / L dimensions each, one after the other
            (RecJPQ, Petrov & Macdonald, WSDM 2024, arXiv 2312.06165; MGQE, Kang et al., WWW 2020, arXiv 2002.08530)
    sum:    the sum of its L codewords, of D dimensions each
            (LightRec, Lian et al., WWW 2020; VQ-Rec, Hou et al., WWW 2023, arXiv 2210.12316)

The codewords are learnt with the model, the codes stay. They come from the training events, as RecJPQ makes them: a
truncated SVD of users x items gives each item L numbers, and the items are cut into C groups of equal size by each of
these numbers. Rare items can share codewords more: they use `rare_codes` of a level's C codewords only (MGQE).
"""

from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

Join = Literal["concat", "sum"]

FREQUENT = 0.1
"""Share of the items, those with most events, that use all codewords of a level; the others are rare (MGQE)."""
NOISE = 1e-5
"""Standard deviation of the noise, relative to that of the numbers, that breaks ties between them (RecJPQ)."""


def quantile_codes(sequences: list[np.ndarray], n_items: int, levels: int, codes: int, seed: int) -> np.ndarray:
    """Codes of items by RecJPQ's SVD: each level cuts the items into groups of equal size.

    Args:
        sequences: items of each of U users, arrays of 0..M-1.
        n_items: M.
        levels: L, below M and U.
        codes: C, groups per level.
        seed: of the SVD and of the noise.

    Returns:
        int64 [M, L], from 0 to C - 1; group sizes of a level differ by at most one.
    """
    from scipy.sparse import csr_array
    from sklearn.decomposition import TruncatedSVD

    offsets = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])])
    events = np.concatenate(sequences)
    taken = csr_array((np.ones(len(events)), events, offsets), shape=(len(sequences), n_items))
    taken.sum_duplicates()
    taken.data[:] = 1
    numbers = TruncatedSVD(levels, random_state=seed).fit(taken).components_.T
    noise = np.random.default_rng(seed).normal(size=numbers.shape)
    ranks = (numbers + NOISE * numbers.std(axis=0) * noise).argsort(axis=0).argsort(axis=0)
    return ranks * codes // n_items


def with_rare_items(item_codes: np.ndarray, counts: np.ndarray, codes: int, rare_codes: int) -> np.ndarray:
    """Codes [M, L] in which rare items use the first `rare_codes` of C codes: neighbouring groups become one.

    Args:
        item_codes: int64 [M, L], from 0 to C - 1.
        counts: events of the items, int [M].
        codes: C.
        rare_codes: from 1 to C.
    """
    frequent = np.argsort(-counts, kind="stable")[: round(FREQUENT * len(counts))]
    found = item_codes * rare_codes // codes
    found[frequent] = item_codes[frequent]
    return found


class CodeTable(nn.Module):
    """Stands for an `nn.Embedding` of M items; the vectors are joined from L codewords each.

    Args:
        item_codes: int64 [M, L].
        codes: C, codewords per level.
        dim: D; for `concat` a multiple of L.
        join: how codewords make a vector.
        std: standard deviation of the vectors before training.
    """

    item_codes: torch.Tensor

    def __init__(self, item_codes: np.ndarray, codes: int, dim: int, join: Join, std: float) -> None:
        super().__init__()
        self.num_embeddings, levels = item_codes.shape
        self.embedding_dim, self.join, self.codes = dim, join, codes
        kind = torch.uint8 if codes <= 256 else torch.int32
        self.register_buffer("item_codes", torch.from_numpy(item_codes).to(kind))
        width, spread = (dim // levels, std) if join == "concat" else (dim, std / levels**0.5)
        self.codewords = nn.Parameter(spread * torch.randn(levels * codes, width))
        self.register_buffer("offsets", codes * torch.arange(levels), persistent=False)

    offsets: torch.Tensor

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Vectors of items, int64 [...] -> float [..., D]."""
        places = self.item_codes[rows].long() + self.offsets
        found = F.embedding(places, self.codewords)
        return found.flatten(-2) if self.join == "concat" else found.sum(-2)

    @property
    def weight(self) -> torch.Tensor:
        """The vectors of all items, float [M, D]."""
        return self(torch.arange(self.num_embeddings, device=self.codewords.device))

    @property
    def bytes(self) -> int:
        """Bytes of the codewords and the codes."""
        return sum(tensor.nbytes for tensor in (self.codewords, self.item_codes))
