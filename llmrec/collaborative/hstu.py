"""HSTU (Zhai et al., ICML 2024, arXiv 2402.17152): attention without a softmax, whose output is gated.

A layer computes, for the states x_0 ... x_{T-1} of a history, with the item i attending to the items j <= i:

    U, V, Q, K = SiLU(W norm(x))
    y_i = 1/n * sum_j SiLU(Q_i . K_j + b_{i-j}) V_j        layer(x) = x + W'(norm(y) * U)

n is `max_history`. The loss is a softmax over the next item and a sample of other items, on cosines divided by a
temperature. The sample is drawn once per step for the whole batch; the authors draw one for each event.

The bias b depends on the distance of two items only. The paper adds a bias for the time between their events; it is
left out here, because a system learns and ranks from the order of the items and gets no times.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from llmrec.collaborative.config import HSTUConfig
from llmrec.collaborative.sasrec import SASRec
from llmrec.data.sequences import EvalExamples

EPS = 1e-6
"""Added to the variance in the norms, as in the authors' code. It matters, because a sum divided by n is small."""


class HSTU(SASRec):
    """Knows the items with training events, as SASRec does.

    Args:
        config: sizes and schedule.
        validation: cases that tell when to stop; those with a target that it knows count.
        seed: of the weights, the order of training, the negatives, and the sample of `validation`.
        vectors: as in `SASRec`.
    """

    name = "hstu"
    config: HSTUConfig
    network: "TransductionNetwork"

    def __init__(
        self, config: HSTUConfig, validation: EvalExamples, seed: int = 0, vectors: np.ndarray | None = None
    ) -> None:
        super().__init__(config, validation, seed, vectors)

    def _make_network(self, n_items: int) -> "TransductionNetwork":
        return TransductionNetwork(n_items, self.config)

    def _optimizer(self) -> torch.optim.Optimizer:
        rate = self.config.learning_rate
        return torch.optim.AdamW(self.network.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def _loss(self, batch: list[np.ndarray]) -> torch.Tensor:
        """Mean cross-entropy of each next item among itself and the sample, which may be all items."""
        following = torch.from_numpy(np.concatenate([sequence[1:] for sequence in batch])).to(self.device)
        sample = torch.randperm(len(self.items), device=self.device)[: self.config.negatives]
        with self._autocast():
            states = self.network([sequence[:-1] for sequence in batch])
        own = (states * self.network.directions(following)).sum(dim=1, keepdim=True)
        others = states @ self.network.directions(sample).T
        others = others.masked_fill(sample == following[:, None], -torch.inf)
        logits = torch.cat([own, others], dim=1) / self.config.temperature
        return F.cross_entropy(logits, torch.zeros_like(following)) + self._table_loss(states, following)


class TransductionNetwork(nn.Module):
    """HSTU layers over item embeddings, which are also the output layer.

    Args:
        n_items: M known items.
        config: sizes.
    """

    def __init__(self, n_items: int, config: HSTUConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.items = nn.Embedding(n_items, size)
        self.positions = nn.Embedding(config.max_history, size)
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=size**-0.5)
        self.temperature = config.temperature
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(TransductionLayer(config) for _ in range(config.layers))

    def forward(self, sequences: list[np.ndarray]) -> torch.Tensor:
        """State after each of the E items of B sequences, float32 [E, D] of length 1, one sequence after the other."""
        tokens = nn.utils.rnn.pad_sequence(
            [torch.from_numpy(sequence) for sequence in sequences], batch_first=True, padding_value=-1
        ).to(self.items.weight.device)
        # Padding is on the right, so no item sees it.
        found = self.items(tokens.clamp(min=0)) * self.items.embedding_dim**0.5
        states = self.dropout(found + self.positions.weight[: tokens.shape[1]])
        for layer in self.layers:
            states = layer(states)
        return F.normalize(states[tokens >= 0], dim=1)

    def directions(self, rows: torch.Tensor) -> torch.Tensor:
        """Embeddings of the items int64 [n], float32 [n, D] of length 1."""
        return F.normalize(self.items.weight[rows], dim=1)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Scores of the M items, float32 [E, M]: cosines divided by the temperature."""
        with torch.autocast(states.device.type, enabled=False):  # in bfloat16 close cosines would tie
            return states @ F.normalize(self.items.weight, dim=1).T / self.temperature


class TransductionLayer(nn.Module):
    """One HSTU layer; see the formulas of the module."""

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        size, width = config.hidden_size, config.heads * config.head_size
        self.heads, self.n = config.heads, config.max_history
        self.norm = nn.LayerNorm(size, eps=EPS)
        self.project = nn.Linear(size, 4 * width, bias=False)
        self.bias = nn.Parameter(0.02 * torch.randn(config.max_history))
        self.attention_norm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(config.layer_dropout)
        self.out = nn.Linear(width, size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Float [B, T, D] -> [B, T, D], T at most `max_history`."""
        gate, *parts = F.silu(self.project(self.norm(states))).chunk(4, dim=-1)
        value, query, key = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        steps = torch.arange(states.shape[1], device=states.device)
        bias = self.bias[(steps[:, None] - steps).clamp(min=0)]
        weights = (F.silu(query @ key.transpose(-1, -2) + bias) / self.n).tril()
        summed = (weights @ value).transpose(1, 2).flatten(2)
        return states + self.out(self.dropout(self.attention_norm(summed) * gate))
