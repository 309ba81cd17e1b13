"""A softmax over the codes of one level instead of one over the vocabulary, as decoding normalises them."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F

from llmrec.errors import UserError
from llmrec.model.architecture import logit_cap, unwrapped
from llmrec.model.rows import TokenRows
from llmrec.model.tokens import ItemVocabulary


class LevelSoftmax:
    """The loss of item tokens among the codes of their level, and of all other tokens among the vocabulary.

    Hidden states are multiplied with the M rows of the item tokens, not with all V rows of the head, which costs as
    much as eight layers of a model with 135 million weights.

    Args:
        model: the model, or a PEFT model around it.
        vocabulary: the item tokens.

    Raises:
        UserError: the model caps its logits, so they are more than products with the rows.
    """

    def __init__(self, model: Any, vocabulary: ItemVocabulary) -> None:
        inner = unwrapped(model)
        if logit_cap(inner) is not None:
            raise UserError(f"--train.softmax level: {type(inner).__name__} caps its logits; set it to vocabulary.")
        self.head: Any = inner.get_output_embeddings()
        device = self.head.weight.device
        self.ids = torch.from_numpy(vocabulary.all_ids).to(device)
        self.sizes = vocabulary.level_sizes
        self.place = torch.full((len(self.head.weight),), -1, device=device)
        self.place[self.ids] = torch.arange(len(self.ids), device=device)

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
            targets: int64 [P], the tokens to predict.

        Returns:
            The sum of their cross-entropies, a scalar, and the logits of the item tokens, float32 [P, M] in level
            order.
        """
        place = self.place[targets]
        ends = list(itertools.accumulate(self.sizes))
        codes = [(place >= end - size) & (place < end) for size, end in zip(self.sizes, ends, strict=True)]
        here = [of_level.nonzero()[:, 0] for of_level in codes]
        return self.of_positions(states, targets, (place < 0).nonzero()[:, 0], here)

    def of_positions(
        self, states: torch.Tensor, targets: torch.Tensor, words: torch.Tensor, here: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As a call, with `words` and `here`, int64, the positions of words and of the codes of each level."""
        scores = F.linear(states, *self._rows(states.dtype)).float()
        total = scores.new_zeros(())
        if len(words):
            # In mixed precision the states come back as float32, while frozen weights may be bfloat16.
            logits = type(self.head).forward(self.head, states[words].to(self._base.weight.dtype))
            total = F.cross_entropy(logits.float(), targets[words], reduction="sum")
        first = 0
        for size, at in zip(self.sizes, here, strict=True):
            codes = self.place[targets[at]] - first
            total = total + F.cross_entropy(scores[at, first : first + size], codes, reduction="sum")
            first += size
        return total, scores

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
