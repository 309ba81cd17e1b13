"""RPG (Hou et al., KDD 2025, arXiv 2506.05781): all codes of the next item, predicted in parallel.

An item has L codes of its text (OPQ, 16 to 64 codes), one from each of L sets of C codes. With an embedding e of each
code, the item's vector is the sum of its codes' embeddings. A causal Transformer over items gives the state h of a
history, and the code c of level l has the probability

    p_l(c | h) = softmax over c of cos(h + SiLU(W_l h + b_l), e_lc) / temperature

The score of an item is the mean of log p_l over its L codes, and the loss is minus the score of the next item. Codes
come from texts alone, so the same network ranks cold items and reads them in histories.

All items are scored, by look-ups in a table of L x C log-probabilities per history. The paper's decoding over a graph
of similar items approximates this, and is not needed here.

Three things differ from the authors' code. They take the mean of the embeddings and raise the learning rate over 10,000
steps; with a mean, which is L times as small, the positions drown the items in the short trainings of small logs. And
the dropout is that of the other networks, after each part of a layer too.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional as F

from llmrec.collaborative.config import RPGConfig
from llmrec.collaborative.counting import centred
from llmrec.collaborative.network import TrainedNetwork, known_items
from llmrec.collaborative.sasrec import START
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError

FitOPQ = Callable[[np.ndarray, int, int, int], Mapping[str, np.ndarray]]
"""Fits OPQ to float32 [N, P] with the numbers of levels and codes and a seed; returns the arrays `mean`, `rotation` and
`codebook.l` of each level."""
BLOCK = 16_384
"""Number of items whose distances to the codes are in memory at a time."""


class RPG(TrainedNetwork):
    """Knows all items by the codes of their texts. Warm items alone fit the codes, train the network and stop it.

    Args:
        config: sizes and schedule.
        validation: validation cases for early stopping; only those with a warm target are used.
        seed: seed of the codes, of the weights, of the order of training, and of the sample of `validation`.
        vectors: of the N items' texts, float [N, D]; a restored model needs none.
        fit_opq: what quantizes the texts; a restored model needs none.
    """

    name = "rpg"
    config: RPGConfig
    network: "CodeNetwork"

    def __init__(
        self,
        config: RPGConfig,
        validation: EvalExamples,
        seed: int = 0,
        vectors: np.ndarray | None = None,
        fit_opq: FitOPQ | None = None,
    ) -> None:
        super().__init__(config, validation, seed, vectors)
        self.fit_opq = fit_opq
        self.text_codes: TextCodes | None = None

    def untrained(self, validation: EvalExamples, vectors: np.ndarray | None) -> Self:
        """As `TrainedNetwork.untrained`; it has the same codes."""
        made = type(self)(self.config, validation, self.seed, vectors)
        made.text_codes = self.network.text_codes
        return made

    def values(self, histories: list[np.ndarray]) -> np.ndarray:
        """The scores, which are log-probabilities already. Items that are added later change none of them."""
        return self.scores(histories)

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        if self.vectors is None:
            raise UserError(f"--{self.named_by} {self.name}: needs the vectors of the items' texts.")
        warm = np.flatnonzero(self.popularity)
        self.unit = centred(self.vectors, warm)
        super()._learn(train_sequences, n_items)
        self.network.set_items(self.unit)
        self.items, self.places = known_items(np.arange(n_items), n_items)
        del self.unit

    def _first_network(self, sequences: list[np.ndarray]) -> nn.Module:
        known = self.unit[self.items]
        codes = self.text_codes or self._fit_codes(known)
        return CodeNetwork(codes, codes.of(known), self.config)

    def _fit_codes(self, known: np.ndarray) -> "TextCodes":
        assert self.fit_opq is not None, "rpg is fitted with a quantizer"
        config = self.config
        pca = PCA(min(config.components, *known.shape), random_state=self.seed).fit(known)
        kept = pca.explained_variance_ > 1e-6 * pca.explained_variance_[0]
        projection = (pca.components_[kept] / pca.explained_variance_[kept, None] ** 0.5).T
        x = ((known - pca.mean_) @ projection).astype(np.float32)
        name = f"--{config.section}"
        if x.shape[1] < config.levels:
            raise UserError(
                f"{name}.levels {config.levels}: the texts of the {len(known)} items with training events vary in "
                f"{x.shape[1]} directions; choose at most so many levels."
            )
        if (distinct := len(np.unique(x, axis=0))) < config.codes:
            raise UserError(
                f"{name}.codes {config.codes}: the items with training events have {distinct} different texts; choose "
                "at most so many codes."
            )
        opq = self.fit_opq(x, config.levels, config.codes, self.seed)
        rotated = projection @ opq["rotation"]
        offset = pca.mean_ @ rotated + opq["mean"] @ opq["rotation"]
        codebooks = np.hstack([opq[f"codebook.{level}"] for level in range(config.levels)])
        return TextCodes(rotated, offset, codebooks, config.levels)

    def restore(self, arrays: Mapping[str, np.ndarray], counts: np.ndarray, unit: np.ndarray | None) -> None:
        super().restore(arrays, counts, unit)
        self.items, self.places = known_items(np.arange(len(counts)), len(counts))
        if unit is not None and unit.shape[1] != len(arrays["text_codes.projection"]):
            raise ValueError(f"codes of {len(arrays['text_codes.projection'])} dimensions, vectors of {unit.shape[1]}")

    def _network_for(self, arrays: Mapping[str, np.ndarray]) -> nn.Module:
        config, item_codes = self.config, arrays["item_codes"]
        shape = len(self.popularity), config.levels
        if item_codes.dtype.kind not in "iu" or item_codes.shape != shape:
            raise ValueError(f"expected {shape[1]} codes for each of {shape[0]} items")
        if item_codes.min() < 0 or item_codes.max() >= config.codes:
            raise ValueError(f"expected codes from 0 to {config.codes - 1}")
        projection, offset, codebooks = (arrays[f"text_codes.{name}"] for name in ("projection", "offset", "codebooks"))
        text_codes = TextCodes(projection, offset, codebooks, config.levels)
        return CodeNetwork(text_codes, torch.from_numpy(item_codes), config)

    def with_cold_items(self, n_items: int, unit: np.ndarray | None) -> Self:
        assert unit is not None, f"{self.name} goes by text vectors"
        grown = super().with_cold_items(n_items, unit)
        grown.items, grown.places = known_items(np.arange(n_items), n_items)
        grown.network = copy.deepcopy(self.network)
        grown.network.set_items(unit[len(self.popularity) :], after=True)
        return grown

    def with_texts(self, unit: np.ndarray) -> Self:
        changed = super().with_texts(unit)
        changed.network = copy.deepcopy(self.network)
        changed.network.set_items(unit)
        return changed

    @torch.inference_mode()
    def _predict(self, histories: list[np.ndarray]) -> np.ndarray:
        with self._autocast():
            shares = self.network.log_shares(self._last_states(histories))
        return self.network.scores(shares).cpu().numpy()

    def _optimizer(self) -> torch.optim.Optimizer:
        rate = self.config.learning_rate
        return torch.optim.AdamW(self.network.parameters(), lr=rate, weight_decay=0.0, fused=True)

    def _loss(self, batch: list[np.ndarray]) -> torch.Tensor:
        """Mean over the next items and the levels of the cross-entropy of the item's code."""
        following = torch.from_numpy(np.concatenate([sequence[1:] for sequence in batch])).to(self.device)
        with self._autocast():
            shares = self.network.log_shares(self.network([sequence[:-1] for sequence in batch]))
        codes = self.network.item_codes[following].long()
        return -shares.gather(2, codes.T[:, :, None]).mean()


class TextCodes(nn.Module):
    """The L codes of a text vector x: (x P - offset) is cut into L blocks, and the nearest code of each block is taken.

    P joins principal components, their scaling and the rotation of OPQ. If L does not divide the components, the first
    blocks are one wider.

    Args:
        projection: P, float [D, P].
        offset: float [P].
        codebooks: the codes of all blocks side by side, float [C, P].
        levels: L.

    Raises:
        ValueError: the shapes do not fit.
    """

    projection: torch.Tensor
    offset: torch.Tensor
    codebooks: torch.Tensor

    def __init__(self, projection: np.ndarray, offset: np.ndarray, codebooks: np.ndarray, levels: int) -> None:
        super().__init__()
        if projection.ndim != 2 or offset.shape != projection.shape[1:] or codebooks.shape[1:] != offset.shape:
            raise ValueError(f"codes of shapes {projection.shape}, {offset.shape} and {codebooks.shape}")
        self.levels = levels
        for name, array in (("projection", projection), ("offset", offset), ("codebooks", codebooks)):
            self.register_buffer(name, torch.from_numpy(np.array(array, np.float32)))

    def of(self, vectors: np.ndarray) -> torch.Tensor:
        """The codes of vectors, float [n, D]: uint8 or int32 [n, L]."""
        # In float64, an item has the same codes alone and among others.
        projection, offset, codebooks = (part.cpu().double() for part in (self.projection, self.offset, self.codebooks))
        blocks, found = codebooks.tensor_split(self.levels, dim=1), []
        for x in torch.from_numpy(np.asarray(vectors, np.float64)).split(BLOCK):
            cut = (x @ projection - offset).tensor_split(self.levels, dim=1)
            nearest = [(y @ c.T - c.square().sum(1) / 2).argmax(1) for y, c in zip(cut, blocks, strict=True)]
            found.append(torch.stack(nearest, 1))
        return torch.cat(found).to(torch.uint8 if len(codebooks) <= 256 else torch.int32)


class CodeNetwork(nn.Module):
    """Transformer over item vectors that are sums of their codes' embeddings, with a prediction head per level.

    Args:
        text_codes: gives codes to items.
        item_codes: of the M items, integers [M, L].
        config: sizes of the network.
    """

    item_codes: torch.Tensor
    offsets: torch.Tensor

    def __init__(self, text_codes: TextCodes, item_codes: torch.Tensor, config: RPGConfig) -> None:
        super().__init__()
        size, levels, codes = config.hidden_size, config.levels, config.codes
        self.text_codes, self.temperature = text_codes, config.temperature
        self.register_buffer("item_codes", item_codes)
        self.register_buffer("offsets", codes * torch.arange(levels), persistent=False)
        self.codewords = nn.Parameter(START * torch.randn(levels * codes, size))
        self.positions = nn.Parameter(START * torch.randn(config.max_history, size))
        self.dropout = nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            size, config.heads, 4 * size, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(size), enable_nested_tensor=False)
        self.heads = nn.Parameter(torch.zeros(levels, size, size))
        self.biases = nn.Parameter(torch.zeros(levels, 1, size))

    def set_items(self, vectors: np.ndarray, after: bool = False) -> None:
        """Let it know items by their text vectors, float [n, D]; `after`: after those that it knows already."""
        found = self.text_codes.of(vectors).to(self.item_codes.device)
        self.item_codes = torch.cat([self.item_codes, found]) if after else found

    def forward(self, sequences: list[np.ndarray]) -> torch.Tensor:
        """State after each of the E items of B sequences, float [E, D], one sequence after the other."""
        device = self.codewords.device
        tokens = nn.utils.rnn.pad_sequence(
            [torch.from_numpy(sequence) for sequence in sequences], batch_first=True, padding_value=-1
        ).to(device)
        # Padding is on the right: with the causal mask, no item sees it.
        rows = self._rows(tokens.clamp(min=0).flatten())
        found = F.embedding_bag(rows, self.codewords, mode="sum").unflatten(0, tokens.shape)
        states = self.dropout(found + self.positions[: tokens.shape[1]])
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=device)
        return self.layers(states, mask=mask, is_causal=True)[tokens >= 0]

    def _rows(self, items: torch.Tensor) -> torch.Tensor:
        """The rows of the items' codes in tables of all codes, int64 [n] -> [n, L]."""
        return self.item_codes[items] + self.offsets

    def log_shares(self, states: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the codes of each level, float [E, D] -> float32 [L, E, C]."""
        heads = states + F.silu(states @ self.heads + self.biases)
        with torch.autocast(states.device.type, enabled=False):  # in bfloat16 close cosines would tie
            words = F.normalize(self.codewords, dim=1).unflatten(0, (len(self.heads), -1))
            return (F.normalize(heads.float(), dim=2) @ words.mT / self.temperature).log_softmax(2)

    def scores(self, log_shares: torch.Tensor) -> torch.Tensor:
        """Mean log-probability of the codes of each of the M items, float32 [L, E, C] -> [E, M]."""
        table = log_shares.movedim(1, 2).flatten(0, 1)
        every = torch.arange(len(self.item_codes), device=table.device)
        return F.embedding_bag(self._rows(every), table, mode="mean").T
