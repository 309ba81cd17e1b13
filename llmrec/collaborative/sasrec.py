"""SASRec (Kang & McAuley, ICDM 2018, arXiv 1808.09781): a small causal Transformer over item embeddings.

The loss is a softmax over all warm items instead of the paper's one sampled negative; that makes it a strong baseline
(Klenitskiy & Vasilev, arXiv 2309.07602).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional as F

from llmrec.collaborative.cage import CageTable, cage_table
from llmrec.collaborative.code_table import CodeTable, quantile_codes, with_rare_items
from llmrec.collaborative.config import SASRecConfig
from llmrec.collaborative.network import TrainedNetwork
from llmrec.console import get_logger
from llmrec.errors import UserError

log = get_logger(__name__)


START = 0.02
"""Standard deviation of the embeddings before training."""


class SASRec(TrainedNetwork):
    """SASRec over the warm items.

    Args:
        config: sizes and schedule.
        validation: validation cases for early stopping; only those with a warm target are used.
        seed: seed of the weights, of the order of training, and of the sample of `validation`.
        vectors: of the N items' texts, float [N, D], if `config.start` is text; a restored model needs none.
    """

    name = "sasrec"
    config: SASRecConfig

    def _first_network(self, sequences: list[np.ndarray]) -> nn.Module:
        config, network = self.config, self._make_network(len(self.items))
        if config.start == "text":
            self._start_from_texts(network)
        if config.table.join == "cage":
            network.items = self._cage_table(network.items)
        elif config.table.join != "none":
            full = network.items
            network.items = table = self._code_table(full, self._codes(sequences))
            log.info(
                "%s: %s bytes of item vectors instead of %s", self.name, f"{table.bytes:,}", f"{full.weight.nbytes:,}"
            )
        return network

    def _network_for(self, arrays: Mapping[str, np.ndarray]) -> nn.Module:
        network, table = self._make_network(len(self.items)), self.config.table
        if table.join == "cage":
            network.items = self._cage_table(network.items)
        elif table.join != "none":
            network.items = self._code_table(network.items, np.zeros((len(self.items), table.levels), int))
        return network

    def _start_from_texts(self, network: Any) -> None:
        """Set the embeddings of the items to the principal components of their text vectors, with the same spread."""
        if self.vectors is None:
            raise UserError(f"--{self.config.section}.start text: needs the vectors of the items' texts.")
        known = np.asarray(self.vectors[self.items], np.float32)
        width = min(self.config.hidden_size, *known.shape)
        found = PCA(width, random_state=self.seed).fit_transform(known)
        with torch.no_grad():
            network.items.weight[: len(known), :width] = torch.from_numpy(START * found / (found.std() + 1e-9))

    def _make_network(self, n_items: int) -> Any:
        return SASRecNetwork(n_items, self.config)

    def _codes(self, sequences: list[np.ndarray]) -> np.ndarray:
        """Codes of the M warm items from the training sequences, int64 [M, L]."""
        table, most = self.config.table, min(len(self.items), len(sequences)) - 1
        if table.levels > most:
            raise UserError(
                f"--{self.config.section}.table.levels {table.levels}: the log gives codes of at most {most} levels."
            )
        codes = quantile_codes(sequences, len(self.items), table.levels, table.codes, self.seed)
        return with_rare_items(codes, self.popularity[self.items], table.codes, table.rare_codes)

    def _code_table(self, full: nn.Embedding, codes: np.ndarray) -> CodeTable:
        """The table of codewords in place of `full`, whose row for padding, if any, gets the codes 0."""
        table, rows = self.config.table, np.zeros((full.num_embeddings, codes.shape[1]), np.int64)
        rows[: len(codes)] = codes
        assert table.join == "concat" or table.join == "sum"
        std = float(full.weight.detach().std())
        return CodeTable(rows, table.codes, full.embedding_dim, table.join, std)

    def _cage_table(self, items: nn.Embedding) -> CageTable:
        return cage_table(items, len(self.items), self.config.table.levels, self.config.section)

    def _table_loss(self, states: torch.Tensor, following: torch.Tensor) -> torch.Tensor | float:
        """What the item table adds to the loss, from states float [E, D] and the next items int64 [E]."""
        table = self.network.items
        return table.loss(states, following) if isinstance(table, CageTable) else 0.0

    def _loss(self, batch: list[np.ndarray]) -> torch.Tensor:
        """Mean cross-entropy of each next item among all warm items."""
        following = torch.from_numpy(np.concatenate([sequence[1:] for sequence in batch])).to(self.device)
        with self._autocast():
            states = self.network([sequence[:-1] for sequence in batch])
            own = F.cross_entropy(self.network.logits(states).float(), following)
            return own + self._table_loss(states, following)

    @torch.inference_mode()
    def _predict(self, histories: list[np.ndarray]) -> np.ndarray:
        with self._autocast():
            return self.network.logits(self._last_states(histories)).float().cpu().numpy()


class SASRecNetwork(nn.Module):
    """Post-norm Transformer over normalised embeddings, as in BERT; the item embeddings are also the output layer.

    Args:
        n_items: number M of warm items; the embedding has one more row, for padding.
        config: sizes of the network.
    """

    def __init__(self, n_items: int, config: SASRecConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.items = nn.Embedding(n_items + 1, size, padding_idx=n_items)
        self.positions = nn.Embedding(config.max_history, size)
        for embedding in (self.items, self.positions):
            nn.init.normal_(embedding.weight, std=START)
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(size, config.heads, 4 * size, config.dropout, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)

    def forward(self, sequences: list[np.ndarray]) -> torch.Tensor:
        """State after each of the E items of B sequences, float [E, D], one sequence after the other."""
        device, pad = self.items.weight.device, self.items.num_embeddings - 1
        tokens = nn.utils.rnn.pad_sequence(
            [torch.from_numpy(sequence) for sequence in sequences], batch_first=True, padding_value=pad
        ).to(device)
        length = tokens.shape[1]
        states = self.dropout(self.norm(self.items(tokens) + self.positions.weight[:length]))
        # Padding is on the right: with the causal mask, no item sees it.
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=device)
        return self.layers(states, mask=mask, is_causal=True)[tokens != pad]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Scores of the M items, float [E, M]."""
        return states @ self.items.weight[:-1].T
