"""Alignment of item vectors with behaviour before they are quantized (QARM, arXiv 2411.11739; OneRec, 2506.13695).

Items that users take together should share codes, even if their texts differ. Both papers fine-tune the encoder on
such item pairs with a contrastive loss. Here the encoder stays frozen, and only a linear head on its vectors is
trained; this takes seconds on a CPU.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from safetensors.numpy import load_file, save_file

from llmrec.collaborative.behaviour import Behaviour
from llmrec.console import get_logger, track
from llmrec.embed.config import AlignConfig
from llmrec.embed.encoder import Encoder
from llmrec.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

log = get_logger(__name__)


class AlignedEncoder(Encoder):
    """Wraps a text encoder and maps its vectors x to x + x A. Items and queries go through the same map."""

    head: np.ndarray
    """The matrix A, float32 [D, D]. There is no bias, so the zero vector stays the zero vector."""

    def __init__(self, text_encoder: Encoder) -> None:
        super().__init__(text_encoder.config)
        self.text_encoder = text_encoder

    def fit(self, texts: Sequence[str]) -> Self:
        """Fit the wrapped text encoder only; `align` trains the head."""
        self.text_encoder.fit(texts)
        return self

    def align(self, texts: Sequence[str], behaviour: Behaviour) -> Self:
        """Train the head on the item pairs of the training log.

        Args:
            texts: N item texts.
            behaviour: events and co-occurrences of the same N items, in the same order.

        Raises:
            UserError: no item pair occurs `min_count` times.
        """
        self.head = learn_head(self.text_encoder.encode(texts), behaviour, self.config.align)
        return self

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return aligned(self.text_encoder.encode(texts), self.head, self.config.normalize)

    def save(self, folder: Path) -> None:
        self.text_encoder.save(folder)
        save_file({"head": self.head}, folder / "alignment.safetensors")

    def load(self, folder: Path) -> Self:
        self.text_encoder.load(folder)
        self.head = load_file(folder / "alignment.safetensors")["head"]
        return self


def without_log(config: AlignConfig) -> str:
    """The message where there is no training log to align with."""
    return (
        f"--embed.align.epochs is {config.epochs}, but there is no log of training events to align with; give one, or "
        "set it to 0"
    )


def aligned(vectors: np.ndarray, head: np.ndarray, normalize: bool) -> np.ndarray:
    """x + x A for each row x of `vectors`, float32 [n, D], with A = `head` [D, D]; of length 1 with `normalize`."""
    vectors = vectors + vectors @ head
    if normalize:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def positive_pairs(behaviour: Behaviour, min_count: int, neighbours: int) -> np.ndarray:
    """The item pairs that occur together at least `min_count` times.

    The strength of a pair (i, j) is count(i, j) / sqrt(events(i) * events(j)). Each item keeps its `neighbours`
    strongest pairs; a pair is returned if at least one of its two items keeps it. With the raw count as strength, the
    most popular items would be the neighbours of every item.

    Returns:
        int64 [P, 2]: P distinct pairs of row numbers, the lower one first.
    """
    pairs = behaviour.pairs.tocoo()
    often = pairs.data >= min_count
    first, second, counts = pairs.row[often], pairs.col[often], pairs.data[often]
    strength = counts / np.sqrt(behaviour.counts[first] * behaviour.counts[second])
    order = np.lexsort((second, -strength, first))
    first, second = first[order], second[order]
    place = np.arange(len(first)) - np.searchsorted(first, first)
    strongest = np.stack([first, second], axis=1)[place < neighbours].astype(np.int64)
    return np.unique(np.sort(strongest, axis=1), axis=0)


def learn_head(vectors: np.ndarray, behaviour: Behaviour, config: AlignConfig) -> np.ndarray:
    """Train the head A, so that x + x A brings the vectors of paired items close together.

    A starts at 0, which leaves the vectors unchanged. Training runs on the GPU if there is one.

    Args:
        vectors: float32 [N, D], the item vectors.
        behaviour: events and co-occurrences of the N items.
        config: the settings of the training.

    Returns:
        float32 [D, D].

    Raises:
        UserError: no item pair occurs `min_count` times.
    """
    import torch

    from llmrec.device import resolve_device

    pairs = positive_pairs(behaviour, config.min_count, config.neighbours)
    if len(pairs) == 0:
        raise UserError(
            f"no two items stand together {config.min_count} times in the training log; "
            "lower --embed.align.min_count, or switch alignment off with --embed.align.epochs 0"
        )
    device = resolve_device("auto")
    x = torch.from_numpy(vectors).to(device)
    head = torch.zeros(x.shape[1], x.shape[1], device=device, requires_grad=True)
    optimizer = torch.optim.Adam([head], lr=config.learning_rate)
    rng = np.random.default_rng(config.seed)
    for _ in track(range(config.epochs), "align", unit="epochs"):
        total = 0.0
        for batch in np.split(rng.permutation(pairs), range(config.batch_size, len(pairs), config.batch_size)):
            chosen = x[torch.from_numpy(batch.T).to(device)]
            moved = chosen + chosen @ head
            hidden = torch.from_numpy(_true_elsewhere(batch, behaviour)).to(device)
            loss = pair_contrast(moved[0], moved[1], hidden, config.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
    log.info("align: loss %.4f on %d pairs after %d epochs", total / len(pairs), len(pairs), config.epochs)
    return head.detach().cpu().numpy()


def pair_contrast(one: "Tensor", other: "Tensor", hidden: "Tensor", temperature: float) -> "Tensor":
    """Symmetric in-batch InfoNCE loss on cosines: row i of `one` and row i of `other` are a positive pair.

    Args:
        one: floats [B, D].
        other: floats [B, D].
        hidden: bool [B, B]; where entry [i, j] is true, row j of `other` is not a negative for row i of `one`.
        temperature: positive; the cosines are divided by it.

    Returns:
        The loss, a scalar: the mean of both directions.
    """
    import torch
    import torch.nn.functional as F

    scores = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T / temperature
    scores = scores.masked_fill(hidden, float("-inf"))
    answers = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, answers) + F.cross_entropy(scores.T, answers)) / 2


def _true_elsewhere(batch: np.ndarray, behaviour: Behaviour) -> np.ndarray:
    """Bool [B, B]: where the first item of pair i and the second item of pair j must not be a negative.

    Entry [i, j] is true if the two are the same item or occur together in the log at least once. The diagonal is
    false, because it holds the positive pairs.

    Args:
        batch: int64 [B, 2], item pairs.
        behaviour: events and co-occurrences of the items.
    """
    one, other = batch.T
    hidden = (behaviour.pairs[one][:, other].toarray() > 0) | (one[:, None] == other)
    np.fill_diagonal(hidden, False)
    return np.asarray(hidden)
