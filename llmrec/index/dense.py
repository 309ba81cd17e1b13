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
    """

    head: DenseHead
    vectors: torch.Tensor
    texts: torch.Tensor

    @classmethod
    def of(cls, head: DenseHead, texts: np.ndarray) -> Self:
        """Build the index of N items from their text vectors.

        Args:
            head: a trained head. It is set to evaluation mode and frozen.
            texts: text vectors of the items, float32 [N, D].

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
        with torch.inference_mode():
            made = [head.items(block.to(device)) for block in given.split(BLOCK)]
        return cls(head, torch.cat(made).clone(), F.normalize(given.to(device), dim=1))

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
        more = self.of(self.head, texts)
        vectors, texts_ = torch.cat([self.vectors, more.vectors]), torch.cat([self.texts, more.texts])
        return replace(self, vectors=vectors, texts=texts_)

    def with_texts(self, rows: np.ndarray, texts: np.ndarray) -> Self:
        """Return the index with text vectors `texts`, float32 [n, D], for the items `rows`, int [n]. Raises as `of`."""
        changed, at = self.of(self.head, texts), torch.as_tensor(rows)
        vectors, texts_ = self.vectors.clone(), self.texts.clone()
        vectors[at], texts_[at] = changed.vectors, changed.texts
        return replace(self, vectors=vectors, texts=texts_)

    def rows(self, rows: np.ndarray) -> Self:
        """Return the index of only the items `rows`, int [n], in that order."""
        at = torch.as_tensor(rows)
        return replace(self, vectors=self.vectors[at], texts=self.texts[at])

    def to(self, device: torch.device | str) -> Self:
        """Return the index on `device`, with a copy of the head."""
        return replace(
            self, head=copy.deepcopy(self.head).to(device), vectors=self.vectors.to(device), texts=self.texts.to(device)
        )

    def save(self, path: Path) -> None:
        """Write the index to `path` as one safetensors file."""
        tensors = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        # float16 halves the bytes; the encoder's own vectors are not more exact than that.
        tensors |= {"items": self.vectors, "texts": self.texts.half()}
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
            vectors, texts = tensors.pop("items"), tensors.pop("texts").float()
            state = {name.removeprefix("head."): tensor for name, tensor in tensors.items()}
            dim, hidden = state["query.weight"].shape
            head = DenseHead(hidden, state["item.0.weight"].shape[1], dim)
            head.load_state_dict(state)
            if vectors.shape != (len(texts), dim) or texts.ndim != 2 or texts.shape[1] != head.text_dims:
                raise ValueError(f"items of shape {tuple(vectors.shape)}, texts of shape {tuple(texts.shape)}")
        except (OSError, SafetensorError, LookupError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{path}: not a dense index that llmrec saved: {reason}.") from None
        return cls(head.eval().requires_grad_(False), vectors, F.normalize(texts, dim=1))
