"""The loss that trains a dense head together with the codes: the head must find each target item by its text vector.

LIGER (arXiv 2411.18814): softmax cross-entropy with logits cos(query, vector of item) / temperature. The query comes
from the hidden state; all items with training events compete. The loss is computed at two positions per target item:
before its first code, and before its second code, as retrieval inside a first code needs it (COBRA, arXiv 2503.02453).
A teacher's distribution over the items can stand beside the target (`train.distill.dense_weight`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from llmrec.device import resolve_dtype
from llmrec.errors import UserError
from llmrec.index.dense import DenseIndex
from llmrec.model.adapter import TEMPERATURE, DenseHead
from llmrec.model.architecture import decoder_of, unwrapped
from llmrec.model.config import DenseConfig
from llmrec.tasks.mixture import predicting
from llmrec.train.config import TrainConfig
from llmrec.train.distill import LEAST, DistillLoss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEPTHS = 2
"""Number of codes of an item before which the loss is computed: the first and the second."""


class DenseLoss(nn.Module):
    """The loss and the head that it trains.

    Args:
        head: the head to train.
        levels: L, of the semantic IDs.
        vectors: float32 [N, D], of the items' texts.
        sequences: per user, int [n], training items. The items that occur in them compete.
        own: float32 [N, d], vectors of the items' own to start from, which are trained with the head; None: the head
            ranks items by their texts alone.
        vector_dropout: the share of the items that compete without their own vectors in a step.
        dtype: the type in which texts are mapped; the head's weights and the cosines are float32.
        distill: has the teacher and the `events` of the batch; None: no teacher.
        share: of the teacher in the loss of an item with an event. Before the second code, the teacher's distribution
            is that of the items with the target's first code.
        competing: if more items than this have training events, a random sample of at most this many competes with the
            targets of a call.

    Attributes:
        items: int64 [B, T], `items` of the batch from a `Collator` with items. The caller sets it before each call.
    """

    texts: torch.Tensor
    place: torch.Tensor

    def __init__(
        self,
        head: DenseHead,
        levels: int,
        vectors: np.ndarray,
        sequences: Sequence[np.ndarray],
        own: np.ndarray | None = None,
        vector_dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        distill: DistillLoss | None = None,
        share: float = 0.0,
        competing: int = DenseConfig.competing,
    ) -> None:
        super().__init__()
        self.competing = competing
        self.distill = distill
        self.share = share
        self.head = head
        self.levels = levels
        self.vectors = vectors
        self.vector_dropout = vector_dropout
        self.dtype = dtype
        known = np.unique(np.concatenate([np.empty(0, np.int64), *sequences]))
        self.known = torch.from_numpy(known)
        self.start = own
        self.own = None if own is None else nn.Parameter(torch.from_numpy(own[known].astype(np.float32)))
        self.register_buffer("texts", torch.from_numpy(vectors[known].astype(np.float32)), persistent=False)
        place = torch.full((len(vectors),), -1)
        place[torch.from_numpy(known)] = torch.arange(len(known))
        self.register_buffer("place", place, persistent=False)
        self.depths = min(DEPTHS, levels)
        self.items: torch.Tensor | None = None
        self._hidden: torch.Tensor | None = None

    @contextmanager
    def watching(self, model: "PreTrainedModel") -> Iterator[None]:
        """In this context, each forward pass of `model` keeps its last hidden states for the loss."""
        # Not the input of the output head: MiniCPM3 scales the states in between, and decoding does not.
        hook = decoder_of(unwrapped(model)).register_forward_hook(self._keep)
        try:
            yield
        finally:
            hook.remove()

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._hidden = output.last_hidden_state

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """The loss of a batch. Before it, the model runs on the batch under `watching`, and the caller sets `items`.

        Args:
            labels: int64 [B, T], -100 where a token is no target.

        Returns:
            Scalar: the mean over the `DEPTHS` positions of an item, summed over the target items.
        """
        assert self._hidden is not None, "the model has run under `watching`"
        assert self.items is not None, "the items of the batch are set"
        at, target = self._targets(self.items)
        where = predicting(labels)
        hidden = self._hidden[where]
        # `hidden` holds one row per predicting position, in order: row[p] is that of flat position p.
        row = where.flatten().cumsum(0) - 1
        texts, own = self.texts, cast(torch.Tensor | None, self.own)
        competing = torch.arange(len(texts), device=target.device)
        if len(texts) > self.competing:
            chosen = torch.randint(len(texts), (self.competing,), device=target.device)
            competing, target = torch.unique(torch.cat([target, chosen]), return_inverse=True)
            texts, own, target = texts[competing], None if own is None else own[competing], target[: len(at)]
        if own is not None and self.vector_dropout:
            own = own * (torch.rand(len(own), 1, device=own.device) >= self.vector_dropout)
        # Nearly all of the loss's time. The autocast of a training ends with the model's forward pass.
        with torch.autocast(texts.device.type, self.dtype, enabled=self.dtype != torch.float32):
            items = self.head.items(texts, own).float()
        queries = self.head.queries(hidden[row[at]].float())
        logits = queries @ items.T / TEMPERATURE
        total = F.cross_entropy(logits, target, reduction="sum")
        if self.distill is not None and self.share:
            rows, expected = self._expected(self.distill, queries, items, logits, competing, at)
            total = total + self.share * (logits[rows, target[rows]] - expected).sum()
        return total / self.depths

    def _expected(
        self,
        distill: DistillLoss,
        queries: torch.Tensor,
        items: torch.Tensor,
        logits: torch.Tensor,
        competing: torch.Tensor,
        at: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean logit by the teacher's distribution over K competing items.

        Args:
            distill: has the teacher.
            queries: float32 [P, d], of P positions, all depths of an item side by side.
            items: float32 [K, d].
            logits: float32 [P, K].
            competing: int64 [K], rows of `texts`.
            at: int64 [P], flat positions, as `_targets` gives them.

        Returns:
            int64 [Q], the positions where the teacher says something, and float32 [Q], the mean logits there.
        """
        assert distill.events is not None, "the events of the batch are set"
        events = distill.events.flatten()[at[:: self.depths] + 1].cpu()
        rows = (events >= 0).nonzero()[:, 0]
        shares = distill.shares(events[rows].numpy())
        own = distill.first_codes(events[rows].numpy())[:, None]
        column = torch.full((len(self.texts) + 1,), -1)
        column[competing.cpu()] = torch.arange(len(competing))
        column = column[self.place.cpu()[shares.items]]  # -1, the last one, for an item that does not compete
        firsts = distill.codes[self.known[competing.cpu()], 0]
        counts = torch.zeros(shares.even.shape[1]).index_add(0, firsts, torch.ones(len(firsts)))
        sums = queries.new_zeros(len(counts), items.shape[1]).index_add(0, firsts.to(items.device), items)
        spoken, found = [], []
        for depth in range(self.depths):
            more, even = torch.where(column >= 0, shares.more, 0), shares.even
            if depth:  # given the first code of the target
                more = torch.where(shares.firsts == own, more, 0)
                even = torch.zeros_like(even).scatter(1, own, even.gather(1, own))
            mass = more.sum(dim=1) + even @ counts
            says = mass > LEAST
            here = (rows[says] * self.depths + depth).to(queries.device)
            more, even = ((each[says] / mass[says, None]).to(queries.device) for each in (more, even))
            best = logits[here].gather(1, column[says].clamp(min=0).to(logits.device))
            others = queries[here] @ sums.T / TEMPERATURE
            spoken.append(here)
            found.append((more * best).sum(dim=1) + (even * others).sum(dim=1))
        return torch.cat(spoken), torch.cat(found)

    def index(self) -> DenseIndex:
        """The index of all N items by the trained head, on the CPU. Items that did not compete keep their vectors."""
        own = None
        if self.own is not None and self.start is not None:
            place = self.place.cpu()
            own = torch.from_numpy(self.start.astype(np.float32))
            own[place >= 0] = self.own.detach().float().cpu()[place[place >= 0]]
        return DenseIndex.of(self.head.cpu().float(), self.vectors, own)

    def _targets(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the loss is computed, from items int64 [B, T].

        Returns:
            int64 [P], flat positions just before the first `DEPTHS` codes of each item, and int64 [P], the rows of
            these items in `texts`.
        """
        first = (items >= 0).flatten().nonzero()[:, 0]
        place = self.place[items.flatten()[first]]
        first, place = first[place >= 0], place[place >= 0]
        depths = torch.arange(self.depths, device=items.device)
        return (first[:, None] - 1 + depths).flatten(), place[:, None].expand(-1, len(depths)).flatten()


def dense_loss(
    model: "PreTrainedModel",
    vectors: np.ndarray | None,
    sequences: Sequence[np.ndarray],
    levels: int,
    config: TrainConfig,
    trained: DenseIndex | None = None,
    distill: DistillLoss | None = None,
) -> DenseLoss | None:
    """The loss and what it trains: a copy of the head and the item vectors of `trained`, or new ones, initialised with
    the configuration's seed; None if its weight is 0. `distill` teaches with the configuration's `dense_weight`.

    Raises:
        UserError: there are no text vectors, or `trained` has other sizes than they and the configuration have, or item
            vectors where the configuration has none.
    """
    dense = config.dense
    if not dense.weight:
        return None
    if vectors is None:
        raise UserError(
            f"--train.dense.weight {dense.weight} trains a dense head on text vectors of the items; pass "
            "vectors=, or set it to 0."
        )
    torch.manual_seed(config.seed)
    hidden = model.get_output_embeddings().weight.shape[1]
    head = DenseHead(hidden, vectors.shape[1], dense.dim)
    own = np.zeros((len(vectors), dense.dim), np.float32) if dense.item_vectors else None
    if trained is not None:
        old = trained.head
        if (found := (old.query.out_features, old.text_dims)) != (wanted := (dense.dim, vectors.shape[1])):
            raise UserError(
                f"--train.dense.dim {wanted[0]} and text vectors of {wanted[1]} dimensions: the model has a dense head "
                f"with {found[0]} and {found[1]}, which is trained further; give it these."
            )
        head.load_state_dict(old.state_dict())
        if trained.own is not None:
            if own is None:
                raise UserError(
                    "--train.dense.item_vectors false: the dense head that is trained further has item vectors; set it "
                    "to true."
                )
            own = trained.own.cpu().numpy()
    dtype = resolve_dtype(config.dtype, model.device)
    share = config.distill.dense_weight
    return DenseLoss(
        head, levels, vectors, sequences, own, dense.vector_dropout, dtype, distill, share, dense.competing
    )
