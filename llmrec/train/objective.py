"""The loss of training: that of the answers' tokens, and what a dense head and a distillation add."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from llmrec.tasks.mixture import predicting
from llmrec.train.dense import DenseLoss
from llmrec.train.distill import DistillLoss
from llmrec.train.levels import LevelSoftmax


def answer_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean cross-entropy over the labelled tokens of the optimizer step.

    Args:
        outputs: `.logits`, [P, V] at the P positions of `predicting(labels)`, or [B, T, V] at all positions, for a
            vocabulary of V tokens.
        labels: int64 [B, T], -100 where a token is no target.
        num_items_in_batch: labelled tokens of the whole optimizer step, over all its forward passes and processes;
            default: those of `labels`.

    Returns:
        Scalar: the sum over this batch, divided by `num_items_in_batch`.
    """
    return Objective()(outputs, labels, num_items_in_batch)


class Objective:
    """(answers + weight * L * dense + distill) / n, with n the labelled tokens of the optimizer step.

    If all labelled tokens are item tokens, n / L is the number of target items, so the second term is `weight` times
    the mean of `dense` per item. All terms are sums over a batch divided by n, so the sum over the step does not depend
    on how it is split into batches. `dense` and `distill` add nothing in validation.

    Args:
        dense: the loss of a dense head, or None.
        weight: of `dense`.
        distill: the loss of a distillation, or None.
        levels: the softmax of item tokens; None: over the vocabulary.
    """

    def __init__(
        self,
        dense: DenseLoss | None = None,
        weight: float = 0.0,
        distill: DistillLoss | None = None,
        levels: LevelSoftmax | None = None,
    ) -> None:
        self.dense, self.weight, self.distill, self.levels = dense, weight, distill, levels

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What of a batch the model reads; the loss keeps `items` and `events`, if the batch has them."""
        batch = dict(batch)
        items, events = batch.pop("items", None), batch.pop("events", None)
        if self.dense is not None:
            self.dense.items = items
        if self.distill is not None:
            self.distill.events = events
        return batch

    def reading(self) -> AbstractContextManager[None]:
        """The context in which the model runs, so that its outputs are what the loss needs."""
        return nullcontext() if self.levels is None else self.levels.hidden_states()

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The loss of a batch that the model has read; arguments and result as for `answer_loss`.

        With `levels`, the outputs hold hidden states in place of logits.
        """
        where = predicting(labels)
        logits = outputs.logits if outputs.logits.dim() == 2 else outputs.logits[where]
        targets = labels.roll(-1, dims=1)[where]
        if self.levels is None:
            total, scores = cross_entropy(logits.float(), targets, reduction="sum"), None
        else:
            total, scores = self.levels(logits, targets)
        if self.dense is not None and self.dense.training:
            total = total + self.weight * self.dense.levels * self.dense(labels)
        if self.distill is not None and self.distill.events is not None:
            total = total + self.distill(logits[:, self.distill.tokens] if scores is None else scores, labels)
        return total / (num_items_in_batch if num_items_in_batch is not None else len(targets))
