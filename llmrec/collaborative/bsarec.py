"""BSARec (Shin et al., AAAI 2024, arXiv 2312.10325): SASRec whose layers also filter a history by frequency.

A layer mixes attention with a filter that keeps the lowest frequencies of the history and scales the others:

    low = lowest frequencies of x            filtered = low + beta^2 (x - low)
    layer(x) = alpha * norm(x + filtered) + (1 - alpha) * norm(x + attention(x)), then the feed-forward block

The filter sees the whole history, so that each training example is one prefix and its next item.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from llmrec.collaborative.config import BSARecConfig
from llmrec.collaborative.sasrec import START, SASRec
from llmrec.data.sequences import EvalExamples


class BSARec(SASRec):
    """Knows the items with training events, as SASRec does.

    Args:
        config: sizes and schedule.
        validation: cases that tell when to stop; those with a target that it knows count.
        seed: of the weights, the order of training, and the sample of `validation`.
        vectors: as in `SASRec`.
    """

    name = "bsarec"
    config: BSARecConfig
    network: "FrequencyTransformer"

    def __init__(
        self, config: BSARecConfig, validation: EvalExamples, seed: int = 0, vectors: np.ndarray | None = None
    ) -> None:
        super().__init__(config, validation, seed, vectors)

    def _make_network(self, n_items: int) -> "FrequencyTransformer":
        return FrequencyTransformer(n_items, self.config)

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=self.config.learning_rate, fused=True)

    def _batches(self, sequences: list[np.ndarray], rng: np.random.Generator) -> Iterator[list[np.ndarray]]:
        """Prefixes of the sequences with the item after them, in random order; of one length within a batch."""
        longest, size = self.config.max_history, self.config.batch_size
        ends = [(row, end) for row, sequence in enumerate(sequences) for end in range(len(sequence))]
        lengths = np.array([min(end, longest) for _, end in ends])
        order = rng.permutation(len(ends))
        order = order[np.argsort(lengths[order], kind="stable")]
        cuts = np.flatnonzero(np.diff(lengths[order])) + 1
        batches = [part[at : at + size] for part in np.split(order, cuts) for at in range(0, len(part), size)]
        for number in rng.permutation(len(batches)):
            chosen = (ends[place] for place in batches[number])
            yield [sequences[row][max(0, end - longest) : end + 1] for row, end in chosen]

    def _loss(self, batch: list[np.ndarray]) -> torch.Tensor:
        """Cross-entropy of the item after each of B prefixes of one length, among all known ones."""
        tokens = torch.from_numpy(np.stack(batch)).to(self.device)
        with self._autocast():
            states = self.network(tokens[:, :-1])
            own = F.cross_entropy(self.network.logits(states).float(), tokens[:, -1])
            return own + self._table_loss(states, tokens[:, -1])

    @torch.inference_mode()
    def _predict(self, histories: list[np.ndarray]) -> np.ndarray:
        """Scores of the M known items after each of B histories of their numbers, float32 [B, M]."""
        self.network.eval()
        cut = [history[-self.config.max_history :] for history in histories]
        lengths = np.array([len(history) for history in cut])
        scores = np.empty((len(cut), self.network.items.num_embeddings), np.float32)
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            tokens = torch.from_numpy(np.stack([cut[row] for row in rows])).to(self.device)
            with self._autocast():
                scores[rows] = self.network.logits(self.network(tokens)).float().cpu().numpy()
        return scores


class FrequencyTransformer(nn.Module):
    """Layers of frequency filter and attention over item embeddings, which are also the output layer.

    Args:
        n_items: M known items.
        config: sizes.
    """

    def __init__(self, n_items: int, config: BSARecConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.items = nn.Embedding(n_items, size)
        self.positions = nn.Embedding(config.max_history + 1, size)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(FrequencyLayer(config) for _ in range(config.layers))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=START)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """State [B, D] after B histories of one length, int64 [B, T]; positions count from the end."""
        places = torch.arange(tokens.shape[1] - 1, -1, -1, device=tokens.device)
        found = self.items(tokens) + self.positions(places)
        start = self.positions.weight[-1].expand(len(tokens), 1, -1)
        states = self.dropout(self.norm(torch.cat([start, found], dim=1)))
        for layer in self.layers:
            states = layer(states)
        return states[:, -1]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Scores of the M items, float [B, M]."""
        return states @ self.items.weight.T


class FrequencyLayer(nn.Module):
    """Frequency filter beside causal attention, mixed by alpha, then a feed-forward block."""

    low_pass: torch.Tensor

    def __init__(self, config: BSARecConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.alpha, self.heads, self.share = config.alpha, config.heads, config.dropout
        self.register_buffer("low_pass", low_pass(config.max_history + 1, config.frequencies), persistent=False)
        self.beta = nn.Parameter(torch.randn(1, 1, size))
        self.project = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.filter_norm, self.attention_norm, self.norm = (nn.LayerNorm(size, eps=1e-12) for _ in range(3))
        self.feed_forward = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Float [B, T, D] -> [B, T, D]."""
        low = self.low_pass[: states.shape[1], : states.shape[1]].to(states.dtype) @ states
        filtered = low + self.beta**2 * (states - low)
        mixed = self.alpha * self.filter_norm(states + self.dropout(filtered))
        mixed = mixed + (1 - self.alpha) * self.attention_norm(states + self.dropout(self._attention(states)))
        return self.norm(mixed + self.dropout(self.feed_forward(mixed)))

    def _attention(self, states: torch.Tensor) -> torch.Tensor:
        batch, length, size = states.shape
        parts = self.project(states).view(batch, length, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        share = self.share if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=share)
        return self.out(found.transpose(1, 2).reshape(batch, length, size))


def low_pass(length: int, count: int) -> torch.Tensor:
    """The filter that keeps the `count` lowest frequencies of a sequence of `length` steps: float32 [length, length].

    Of a shorter sequence the upper left part filters as if zeros came before it; all frequencies give the input back.
    """
    spectrum = torch.zeros(length // 2 + 1)
    spectrum[:count] = 1
    kernel = torch.fft.irfft(spectrum, n=length)
    steps = torch.arange(length)
    return kernel[(steps[:, None] - steps) % length]
