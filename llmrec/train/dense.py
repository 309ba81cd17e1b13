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

from llmrec.index.trie import ItemTrie
from llmrec.model.dense import TEMPERATURE, DenseHead
from llmrec.tasks.mixture import predicting
from llmrec.tasks.render import Renderer

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
        renderer: of the model's tokenizer; items are found by their tokens. Of items that share a semantic ID, the
            first counts.
        vectors: float32 [N, D], of the items' texts.
        sequences: per user, int [n], training items: what competes is an item that occurs in them.
    """

    code_of_token: torch.Tensor
    level_of_token: torch.Tensor
    texts: torch.Tensor
    place: torch.Tensor

    def __init__(
        self, head: DenseHead, renderer: Renderer, vectors: np.ndarray, sequences: Sequence[np.ndarray]
    ) -> None:
        super().__init__()
        self.head = head
        self.trie = ItemTrie.build(renderer.codes, renderer.vocabulary.level_sizes)
        size = int(renderer.vocabulary.all_ids.max()) + 1
        codes = torch.from_numpy(renderer.vocabulary.code_of_token(size))
        self.register_buffer("code_of_token", codes, persistent=False)
        level_of = torch.full((size,), -1)
        for level, ids in enumerate(renderer.vocabulary.ids):
            level_of[torch.from_numpy(ids)] = level
        self.register_buffer("level_of_token", level_of, persistent=False)
        known = np.unique(np.concatenate([np.empty(0, np.int64), *sequences]))
        self.register_buffer("texts", torch.from_numpy(vectors[known].astype(np.float32)), persistent=False)
        place = torch.full((len(vectors),), -1)
        place[torch.from_numpy(known)] = torch.arange(len(known))
        self.register_buffer("place", place, persistent=False)
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
        """Sum over the items learnt in labels int64 [B, T], mean over the depths; after the model's own forward."""
        assert self._hidden is not None, "the model has run under `watching`"
        at, target = self._targets(labels)
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
        return total / min(DEPTHS, self.trie.levels)

    def _targets(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Flat positions int64 [P] before the codes of learnt items, and the items' places among the known ones."""
        trie = self.trie = self.trie.to(labels.device)
        levels, size = trie.levels, len(self.code_of_token)
        inside = (labels >= 0) & (labels < size)
        token = labels.clamp(min=0, max=size - 1)
        level_of = torch.where(inside, self.level_of_token[token], -1)
        starts = level_of == 0
        starts[:, :1] = False  # nothing comes before it
        starts[:, labels.shape[1] - levels + 1 :] = False  # cut off
        first = starts.flatten().nonzero()[:, 0]
        node = torch.zeros_like(first)
        for level in range(levels):
            own = level_of.flatten()[first + level] == level
            node = trie.step(level, torch.where(own, node, -1), self.code_of_token[token.flatten()[first + level]])
        item = trie.order[trie.firsts[-1][node.clamp(min=0)].long()].long()
        place = torch.where(node >= 0, self.place[item], -1)
        first, place = first[place >= 0], place[place >= 0]
        depths = torch.arange(min(DEPTHS, levels), device=labels.device)
        return (first[:, None] - 1 + depths).flatten(), place[:, None].expand(-1, len(depths)).flatten()
