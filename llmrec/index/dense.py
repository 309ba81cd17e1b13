"""Dense retrieval of items: one vector space for the model's hidden states and the items' text vectors.

A head maps both into that space. It is trained with the language model, on the cosine of the hidden state and the
target item (LIGER, arXiv 2411.18814). What it learns from texts also holds for cold items, whose codes the model has
hardly learned.

    index = DenseIndex.of(head, text_vectors)       # text_vectors [N, D]
    index.log_probabilities(hidden)                 # hidden [B, H] -> [B, N]
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from llmrec.errors import UserError
from llmrec.model.adapter import TEMPERATURE, DenseHead

BLOCK = 65_536
"""Number of items whose vectors are computed at once."""


@dataclass(frozen=True)
class DenseIndex:
    """A trained head, and the vectors of the N items of a catalogue, in catalogue order.

    Attributes:
        head: the trained head, on the same device as the vectors.
        vectors: the items in the space of the head, float32 [N, d], rows of length 1.
        texts: the items' text vectors from the encoder, float32 [N, D], scaled to rows of length 1.
        own: vectors of the items' own, which were learnt beside their texts, float32 [N, d], 0 for cold items; None if
            the head knows texts alone.
    """

    head: DenseHead
    vectors: torch.Tensor
    texts: torch.Tensor
    own: torch.Tensor | None = None

    @classmethod
    def of(cls, head: DenseHead, texts: np.ndarray, own: torch.Tensor | None = None) -> Self:
        """Build the index of N items from their text vectors.

        Args:
            head: a trained head. It is set to evaluation mode and frozen.
            texts: text vectors of the items, float32 [N, D].
            own: vectors of the items' own, float32 [N, d], or None.

        Raises:
            UserError: D differs from the head's `text_dims`.
        """
        if texts.ndim != 2 or texts.shape[1] != head.text_dims:
            raise UserError(
                f"text vectors of shape {texts.shape} for a dense head of {head.text_dims} dimensions; embed with the "
                "encoder that the model was trained with"
            )
        head = head.eval().requires_grad_(False)
        device = head.query.weight.device
        given = torch.as_tensor(np.asarray(texts, np.float32))
        own = None if own is None else own.to(device)
        blocks = given.split(BLOCK)
        parts = [None] * len(blocks) if own is None else own.split(BLOCK)
        with torch.inference_mode():
            made = [head.items(block.to(device), part) for block, part in zip(blocks, parts, strict=True)]
        return cls(head, torch.cat(made).clone(), F.normalize(given.to(device), dim=1), own)

    def __len__(self) -> int:
        return len(self.vectors)

    def log_probabilities(self, hidden: torch.Tensor, is_cold: torch.Tensor | None = None) -> torch.Tensor:
        """Return the log-probability that each item is next: log softmax over items of cosine / temperature.

        Args:
            hidden: hidden states, float [B, H].
            is_cold: bool [N], the cold items. If given, only warm items are in the sum of the softmax, so that cold
                items do not change the scores of other items. If None or if all items are cold, all are in the sum.

        Returns:
            float32 [B, N].
        """
        weight = self.head.query.weight
        logits = self.head.queries(hidden.to(weight.device, weight.dtype)) @ self.vectors.T / TEMPERATURE
        if is_cold is None or bool(is_cold.all()):
            return logits.log_softmax(-1)
        return logits - logits[:, ~is_cold].logsumexp(-1, keepdim=True)

    def with_items(self, texts: np.ndarray) -> Self:
        """Return the index with n more items, of text vectors `texts`, float32 [n, D], at the end. Raises as `of`."""
        own = None if self.own is None else self.own.new_zeros(len(texts), self.own.shape[1])
        more = self.of(self.head, texts, own)
        both = [torch.cat(pair) for pair in ((self.vectors, more.vectors), (self.texts, more.texts))]
        own = None if self.own is None or more.own is None else torch.cat([self.own, more.own])
        return replace(self, vectors=both[0], texts=both[1], own=own)

    def with_texts(self, rows: np.ndarray, texts: np.ndarray) -> Self:
        """Return the index with text vectors `texts`, float32 [n, D], for the items `rows`, int [n]. Raises as `of`."""
        at = torch.as_tensor(rows)
        changed = self.of(self.head, texts, None if self.own is None else self.own[at])
        vectors, texts_ = self.vectors.clone(), self.texts.clone()
        vectors[at], texts_[at] = changed.vectors, changed.texts
        return replace(self, vectors=vectors, texts=texts_)

    def rows(self, rows: np.ndarray) -> Self:
        """Return the index of only the items `rows`, int [n], in that order."""
        at = torch.as_tensor(rows)
        own = None if self.own is None else self.own[at]
        return replace(self, vectors=self.vectors[at], texts=self.texts[at], own=own)

    def to(self, device: torch.device | str) -> Self:
        """Return the index on `device`, with a copy of the head."""
        own = None if self.own is None else self.own.to(device)
        head = copy.deepcopy(self.head).to(device)
        return replace(self, head=head, vectors=self.vectors.to(device), texts=self.texts.to(device), own=own)

    def save(self, path: Path) -> None:
        """Write the index to `path` as one safetensors file."""
        tensors = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        # float16 halves the bytes; the encoder's own vectors are not more exact than that.
        tensors |= {"items": self.vectors, "texts": self.texts.half()}
        tensors |= {} if self.own is None else {"own": self.own}
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote; the index is on the CPU.

        Raises:
            UserError: the file can't be read, is damaged, or is no dense index.
        """
        try:
            # Clone: safetensors may map a tensor at an unaligned address, where sums can run in another order.
            tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
            if damaged := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
                raise ValueError(f"{damaged[0]} holds NaN or infinity")
            vectors, texts, own = tensors.pop("items"), tensors.pop("texts").float(), tensors.pop("own", None)
            state = {name.removeprefix("head."): tensor for name, tensor in tensors.items()}
            dim, hidden = state["query.weight"].shape
            head = DenseHead(hidden, state["item.0.weight"].shape[1], dim)
            head.load_state_dict(state)
            if vectors.shape != (len(texts), dim) or texts.ndim != 2 or texts.shape[1] != head.text_dims:
                raise ValueError(f"items of shape {tuple(vectors.shape)}, texts of shape {tuple(texts.shape)}")
            if own is not None and own.shape != vectors.shape:
                raise ValueError(f"items of shape {tuple(vectors.shape)}, vectors of their own {tuple(own.shape)}")
        except (OSError, SafetensorError, LookupError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{path}: not a dense index that llmrec saved: {reason}.") from None
        return cls(head.eval().requires_grad_(False), vectors, F.normalize(texts, dim=1), own)
