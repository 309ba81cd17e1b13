"""Items as vectors beside their tokens: one space for what a language model is about to say and what items' texts say.

A head is trained with the model, by the cosine of its hidden state and the next item (LIGER, arXiv 2411.18814). What it
learns of texts carries over to items that no training has seen, whose codes tell a model little.

    index = DenseIndex.of(head, text_vectors)       # N items
    index.log_probabilities(hidden)                 # [B, N]
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
"""Items whose vectors are made at a time."""


@dataclass(frozen=True)
class DenseIndex:
    """A trained head and the vectors of a catalogue's N items, in the catalogue's order.

    Attributes:
        head: on the CPU or wherever `to` has put it.
        vectors: float32 [N, d], unit rows: the items in the head's space.
        texts: float32 [N, D], unit rows: the items' text vectors, as an encoder made them.
    """

    head: DenseHead
    vectors: torch.Tensor
    texts: torch.Tensor

    @classmethod
    def of(cls, head: DenseHead, texts: np.ndarray) -> Self:
        """The index of items with text vectors `texts`, float32 [N, D].

        Raises:
            UserError: D is not the head's.
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
        """Of each item being next after hidden states [B, H]: float32 [B, N].

        A softmax over the items; of `new`, bool [N], over the others, so that they change nobody's score. Where all
        are new, over all.
        """
        weight = self.head.query.weight
        logits = self.head.queries(hidden.to(weight.device, weight.dtype)) @ self.vectors.T / TEMPERATURE
        if is_cold is None or bool(is_cold.all()):
            return logits.log_softmax(-1)
        return logits - logits[:, ~is_cold].logsumexp(-1, keepdim=True)

    def with_items(self, texts: np.ndarray) -> Self:
        """The index with more items, of text vectors float32 [n, D], after the old ones; raises as `of`."""
        more = self.of(self.head, texts)
        vectors, texts_ = torch.cat([self.vectors, more.vectors]), torch.cat([self.texts, more.texts])
        return replace(self, vectors=vectors, texts=texts_)

    def with_texts(self, rows: np.ndarray, texts: np.ndarray) -> Self:
        """The index in which the items `rows`, int [n], have other texts, of vectors float32 [n, D]; raises as `of`."""
        changed, at = self.of(self.head, texts), torch.as_tensor(rows)
        vectors, texts_ = self.vectors.clone(), self.texts.clone()
        vectors[at], texts_[at] = changed.vectors, changed.texts
        return replace(self, vectors=vectors, texts=texts_)

    def rows(self, rows: np.ndarray) -> Self:
        """The index of the items `rows`, int [n], alone."""
        at = torch.as_tensor(rows)
        return replace(self, vectors=self.vectors[at], texts=self.texts[at])

    def to(self, device: torch.device | str) -> Self:
        """The same on `device`."""
        return replace(
            self, head=copy.deepcopy(self.head).to(device), vectors=self.vectors.to(device), texts=self.texts.to(device)
        )

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        tensors = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        # Half as long: an encoder's own vectors are no more exact.
        tensors |= {"items": self.vectors, "texts": self.texts.half()}
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: the file is damaged, or another.
        """
        try:
            # Copies: what safetensors maps may lie at any offset, where sums come in another order.
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
