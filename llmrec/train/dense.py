"""The loss that trains a dense head beside the codes: at every item that is learnt, its vector among all items'.

LIGER (arXiv 2411.18814): cross-entropy of the cosine between the hidden state and the items' vectors over a
temperature, all items with training events competing. It is taken before an item's first code, and again before its
second: what retrieval inside a first code needs (COBRA, arXiv 2503.02453).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from llmrec.model.adapter import TEMPERATURE, DenseHead
from llmrec.tasks.mixture import predicting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPETING = 32_768
"""Items that compete in one step at most, its own targets among them; of more a random sample does."""
DEPTHS = 2
"""Places of an item where the loss is taken: before its first code, and before its second."""


class DenseLoss(nn.Module):
    """The loss, with the head that it trains.

    Args:
        head: to be trained.
        levels: of the semantic IDs.
        vectors: float32 [N, D], of the items' texts.
        sequences: per user, int [n], training items: what competes is an item that occurs in them.

    Attributes:
        items: int64 [B, T], where the items of the batch begin (`Collator`, with items); to be set before each call.
    """

    texts: torch.Tensor
    place: torch.Tensor

    def __init__(self, head: DenseHead, levels: int, vectors: np.ndarray, sequences: Sequence[np.ndarray]) -> None:
        super().__init__()
        self.head = head
        self.levels = levels
        known = np.unique(np.concatenate([np.empty(0, np.int64), *sequences]))
        self.register_buffer("texts", torch.from_numpy(vectors[known].astype(np.float32)), persistent=False)
        place = torch.full((len(vectors),), -1)
        place[torch.from_numpy(known)] = torch.arange(len(known))
        self.register_buffer("place", place, persistent=False)
        self.items: torch.Tensor | None = None
        self._hidden: torch.Tensor | None = None

    @contextmanager
    def watching(self, model: "PreTrainedModel") -> Iterator[None]:
        """Within, what `model` hands to its output head is kept for the loss."""
        hook = model.get_output_embeddings().register_forward_pre_hook(self._keep)
        try:
            yield
        finally:
            hook.remove()

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._hidden = inputs[0]

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """The loss of a batch, after the model's own forward under `watching` and with `items` set.

        Args:
            labels: int64 [B, T].

        Returns:
            Sum over the learnt items, mean over the depths.
        """
        assert self._hidden is not None, "the model has run under `watching`"
        assert self.items is not None, "the items of the batch are set"
        at, target = self._targets(self.items)
        where = predicting(labels)
        hidden = self._hidden if self._hidden.dim() == 2 else self._hidden[where]
        # Rows of `hidden` are the predicting positions in order.
        row = where.flatten().cumsum(0) - 1
        texts = self.texts
        if len(texts) > COMPETING:
            chosen = torch.randint(len(texts), (COMPETING,), device=target.device)
            chosen, target = torch.unique(torch.cat([target, chosen]), return_inverse=True)
            texts, target = texts[chosen], target[: len(at)]
        items = self.head.items(texts)
        queries = self.head.queries(hidden[row[at]])
        total = F.cross_entropy((queries @ items.T).float() / TEMPERATURE, target, reduction="sum")
        return total / min(DEPTHS, self.levels)

    def _targets(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Flat positions int64 [P] before the codes of items int64 [B, T], and the items' places in `texts`."""
        first = (items >= 0).flatten().nonzero()[:, 0]
        place = self.place[items.flatten()[first]]
        first, place = first[place >= 0], place[place >= 0]
        depths = torch.arange(min(DEPTHS, self.levels), device=items.device)
        return (first[:, None] - 1 + depths).flatten(), place[:, None].expand(-1, len(depths)).flatten()
