"""A softmax over the codes of one level, or over those that continue the prefix to an item, instead of one over the
vocabulary: as decoding normalises them with scoring `level` or `catalogue`."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F

from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie
from llmrec.model.architecture import logit_cap, unwrapped
from llmrec.model.rows import TokenRows
from llmrec.model.tokens import ItemVocabulary


class LevelSoftmax:
    """The loss of item tokens among the codes of their level, and of all other tokens among the vocabulary.

    With tries, only the codes that continue an item's prefix to an item compete, so that the losses of an item's codes
    sum to -log of its probability among all items, and a code without a rival costs nothing.

    Hidden states are multiplied with the M rows of the item tokens, not with all V rows of the head, which costs as
    much as eight layers of a model with 135 million weights.

    Args:
        model: the model, or a PEFT model around it.
        vocabulary: the item tokens.
        tries: of the items, for consecutive levels of `vocabulary`: one trie, or one for each of two streams. Every
            item that is a target is in them. Without tries, all codes of a level compete.

    Raises:
        UserError: the model caps its logits, so they are more than products with the rows.
    """

    def __init__(self, model: Any, vocabulary: ItemVocabulary, tries: Sequence[ItemTrie] = ()) -> None:
        inner = unwrapped(model)
        if logit_cap(inner) is not None:
            raise UserError(f"--train.softmax: {type(inner).__name__} caps its logits; set it to vocabulary.")
        self.head: Any = inner.get_output_embeddings()
        self.ids = torch.from_numpy(vocabulary.all_ids)
        self.sizes = vocabulary.level_sizes
        self.tries = list(tries)
        self.place = torch.full((len(self.head.weight),), -1)
        self.place[self.ids] = torch.arange(len(self.ids))

    @contextmanager
    def hidden_states(self) -> Iterator[None]:
        """In this context, the model returns the hidden states before its output head in place of logits."""
        self.head.forward = lambda states: states
        try:
            yield
        finally:
            del self.head.forward

    def __call__(self, states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of P tokens.

        Args:
            states: float [P, H], what the model returned in the context `hidden_states`.
            targets: int64 [P], the tokens to predict; those of an item follow each other.

        Returns:
            The sum of their cross-entropies, a scalar, and the logits of the item tokens, float32 [P, M] in level
            order.
        """
        self._follow(targets.device)
        place = self.place[targets]
        ends = list(itertools.accumulate(self.sizes))
        codes = [(place >= end - size) & (place < end) for size, end in zip(self.sizes, ends, strict=True)]
        here = [of_level.nonzero()[:, 0] for of_level in codes]
        rivals = self._rivals(place, here) if self.tries else None
        return self.of_positions(states, targets, (place < 0).nonzero()[:, 0], here, rivals)

    def of_positions(
        self,
        states: torch.Tensor,
        targets: torch.Tensor,
        words: torch.Tensor,
        here: Sequence[torch.Tensor],
        rivals: Sequence[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As a call, with what a call finds out.

        Args:
            states: as for a call.
            targets: as for a call.
            words: int64, the positions of tokens that are not of items.
            here: per level, int64 [n], the positions of its codes.
            rivals: per level, bool [n, C_l], the codes that compete there; None: all.
        """
        self._follow(targets.device)
        scores = F.linear(states, *self._rows(states.dtype)).float()
        total = scores.new_zeros(())
        if len(words):
            # In mixed precision the states come back as float32, while frozen weights may be bfloat16.
            logits = type(self.head).forward(self.head, states[words].to(self._base.weight.dtype))
            total = F.cross_entropy(logits.float(), targets[words], reduction="sum")
        first = 0
        for level, (size, at) in enumerate(zip(self.sizes, here, strict=True)):
            codes, among = self.place[targets[at]] - first, scores[at, first : first + size]
            if rivals is not None:
                among = among.masked_fill(~rivals[level], -torch.inf)
            total = total + F.cross_entropy(among, codes, reduction="sum")
            first += size
        return total, scores

    def _follow(self, device: torch.device) -> None:
        """Move to the device of a batch: a training moves the model to the GPU only after this object is made."""
        if self.place.device != device:
            self.ids, self.place = self.ids.to(device), self.place.to(device)
            self.tries = [trie.to(device) for trie in self.tries]

    def _rivals(self, place: torch.Tensor, here: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Per level, bool [n, C_l]: the codes that continue the prefix of the n targets of this level to an item.

        Args:
            place: int64 [P], the targets' places among the item tokens; those of an item follow each other.
            here: per level, int64 [n], the positions of its codes.
        """
        found, first, at_level = [], 0, iter(here)
        node = torch.zeros_like(place)  # of the trie on the last level done; the root before the first
        for trie in self.tries:
            for level, size in enumerate(trie.level_sizes):
                at = next(at_level)
                parents = node[at - 1] if level else torch.zeros_like(at)
                row, children = trie.children(level, parents)
                rivals = torch.zeros(len(at), size, dtype=torch.bool, device=place.device)
                rivals[row, trie.codes(level, children)] = True
                found.append(rivals)
                node[at] = trie.step(level, parents, place[at] - first)
                first += size
        return found

    @property
    def _base(self) -> Any:
        """The output head without the trained rows beside it."""
        head = getattr(self.head, "token_adapter", self.head)  # peft wraps its layer
        return head.base_layer if isinstance(head, TokenRows) else head

    def _rows(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The rows [M, H] of the item tokens in the output head, and their biases [M] or None."""
        head, base = getattr(self.head, "token_adapter", self.head), self._base
        rows = base.weight[self.ids] if base is head else head.trainable_tokens_delta["default"]
        bias = getattr(base, "bias", None)
        return rows.to(dtype), None if bias is None else bias[self.ids].to(dtype)
