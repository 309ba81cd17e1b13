"""LISA (Wu et al., WWW 2021, arXiv 2105.14068): attention over a histogram of codes, in time linear in the history.

Each item is quantized by B codebooks of W codewords, level by level on what the levels before leave. At codebook b, the
query of step t is its codeword, and the keys and values are the W codewords instead of the t items. With h_t[w] the
number of items up to t with codeword w,

    attention_t = sum over b of  sum_w h_t[w] exp(q_t . k_w / sqrt(D)) v_w / sum_w h_t[w] exp(q_t . k_w / sqrt(D))

so a step costs B W D, however long the history is. Where items equal their codewords, this is softmax attention. As in
the authors' base configuration, an item that is s steps ago counts exp(-decay s), and there is one layer. The loss
is that of `SASRec` here, a softmax over all warm items, instead of the authors' sampled binary one.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from llmrec.collaborative.config import LISAConfig
from llmrec.collaborative.sasrec import SASRec

CHUNK = 64
"""Steps whose decayed counts are computed in one product."""


class LISA(SASRec):
    """Knows the items with training events, as SASRec does; the arguments are those of `SASRec`."""

    name = "lisa"
    config: LISAConfig

    def _make_network(self, n_items: int) -> Any:
        return HistogramNetwork(n_items, self.config)


class HistogramNetwork(nn.Module):
    """One layer of attention over codeword histograms; sums of codewords are also the output layer.

    Args:
        n_items: number M of warm items.
        config: sizes of the network.
    """

    def __init__(self, n_items: int, config: LISAConfig) -> None:
        super().__init__()
        size, books, words = config.hidden_size, config.codebooks, config.codewords
        self.temperature, self.decay = config.temperature, config.decay
        self.items = nn.Embedding(n_items, size)
        self.positions = nn.Embedding(config.max_history, size)
        self.codebooks = nn.Parameter(torch.empty(books, words, size))
        self.similarity = nn.Parameter(torch.empty(size, size))
        self.query, self.key, self.value = (nn.Parameter(torch.empty(books, size, size)) for _ in range(3))
        for weight in (self.items.weight, self.codebooks, self.similarity, self.query, self.key, self.value):
            nn.init.xavier_normal_(weight)
        nn.init.xavier_normal_(self.positions.weight)
        self.dropout = nn.Dropout(config.dropout)
        self.norms = nn.ModuleList([nn.LayerNorm(size), nn.LayerNorm(size)])
        self.feed_forward = nn.Sequential(
            nn.Linear(size, size), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(size, size)
        )

    def quantize(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of vectors, float [n, D], as rows of zeros and a one.

        Returns:
            float [n, B, W], with the gradient of a softmax; and the sums of the codewords, float [n, D].
        """
        rest, chosen = vectors, []
        for codebook in self.codebooks:
            share = (rest @ self.similarity @ codebook.T / self.temperature).softmax(1)
            hard = F.one_hot(share.argmax(1), len(codebook)).to(share.dtype)
            chosen.append(share + (hard - share).detach())
            rest = rest - chosen[-1] @ codebook
        return torch.stack(chosen, 1), vectors - rest

    def vectors(self, rows: torch.Tensor) -> torch.Tensor:
        """The embeddings of items before they are quantized, int64 [...] -> float [..., D]."""
        return self.items(rows) * self.items.embedding_dim**0.5

    def forward(self, sequences: list[np.ndarray]) -> torch.Tensor:
        """State after each of the E items of B sequences, float [E, D], one sequence after the other."""
        tokens = nn.utils.rnn.pad_sequence(
            [torch.from_numpy(sequence) for sequence in sequences], batch_first=True, padding_value=-1
        ).to(self.items.weight.device)
        # Padding is on the right, so no item sees it.
        with torch.autocast(tokens.device.type, enabled=False):  # counts and exponentials need float32
            chosen, found = self.quantize(self.vectors(tokens.clamp(min=0)).flatten(0, 1))
            chosen = chosen.unflatten(0, tokens.shape)
            attended = self.attend(chosen)
        states = self.dropout(found.unflatten(0, tokens.shape) + self.positions.weight[: tokens.shape[1]])
        states = self.norms[0](states + self.dropout(attended))
        states = self.norms[1](states + self.dropout(self.feed_forward(states)))
        return states[tokens >= 0]

    def attend(self, chosen: torch.Tensor) -> torch.Tensor:
        """Attention over the histograms of the codes `chosen`, float [n, T, B, W]: float [n, T, D]."""
        counts = decayed_counts(chosen.flatten(2), self.decay).view_as(chosen)
        table = (self.codebooks @ self.query) @ (self.codebooks @ self.key).mT / self.items.embedding_dim**0.5
        code = chosen.argmax(3)
        logits = table[torch.arange(len(table), device=table.device), code]
        weights = counts * (logits - logits.amax(3, keepdim=True).detach()).exp()
        weights = weights / weights.sum(3, keepdim=True)
        return torch.einsum("ntbw,bwd->ntd", weights, self.codebooks @ self.value)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Scores of the M items, float [E, M]."""
        rows = torch.arange(self.items.num_embeddings, device=states.device)
        with torch.autocast(states.device.type, enabled=False):
            return states.float() @ self.quantize(self.vectors(rows))[1].T


def decayed_counts(values: torch.Tensor, decay: float) -> torch.Tensor:
    """At each step t the sum over s up to t of exp(-decay (t - s)) values_s, float [n, T, K] -> [n, T, K].

    The time is linear in T.
    """
    steps = torch.arange(CHUNK, dtype=values.dtype, device=values.device)
    apart = steps[:, None] - steps
    kernel = torch.where(apart >= 0, (-decay * apart.clamp(min=0)).exp(), 0)
    since = (-decay * (steps + 1)).exp()[:, None]
    before, parts = values.new_zeros(len(values), 1, values.shape[2]), []
    for block in values.split(CHUNK, dim=1):
        n = block.shape[1]
        parts.append(kernel[:n, :n] @ block + since[:n] * before)
        before = parts[-1][:, -1:]
    return torch.cat(parts, 1)
