"""Distillation through the trie: a teacher's distribution over items teaches each code of a semantic ID.

The teacher's probability of a code after a prefix is the share of the items below the prefix that go on with the code:
q(c | prefix) = sum of p(i) below (prefix, c) / sum of p(i) below prefix. On the path of each target item, level by
level, the loss is the cross-entropy of q and the model, mixed with that of the target's own code.

A model whose logits are log q everywhere gives each item the probability p(i) by the chain rule. A teacher that gives
the target all its probability gives the usual loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llmrec.collaborative.teacher import LEAST, Teacher
from llmrec.data.sequences import first_target
from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie
from llmrec.model.tokens import ItemVocabulary
from llmrec.tasks.mixture import predicting


@dataclass(frozen=True)
class Shares:
    """The teacher's distributions over the items at E targets, p(i) = even[c] + (more, if i is one of the best).

    Attributes:
        items: int64 [E, top], the best.
        firsts: int64 [E, top], their first codes.
        more: float32 [E, top], what the best have above the `even` of their first code c.
        even: float32 [E, C], what an item with this first code has that is not one of the best.
    """

    items: torch.Tensor
    firsts: torch.Tensor
    more: torch.Tensor
    even: torch.Tensor


class DistillLoss:
    """What distillation adds to the usual loss.

    Args:
        teacher: of the training sequences.
        sequences: per user, int [n], training items.
        codes: int [N, L], the semantic ID of every item.
        vocabulary: the item tokens.
        weight: share of the teacher in the loss of an item token.

    Attributes:
        tokens: int64 [M], the item tokens, in level order.
        events: int64 [B, T], `events` of the batch from a `Collator` with events. The caller sets it before each call;
            None: no distillation, as in validation.
    """

    def __init__(
        self,
        teacher: Teacher,
        sequences: Sequence[np.ndarray],
        codes: np.ndarray,
        vocabulary: ItemVocabulary,
        weight: float,
    ) -> None:
        teacher.check(sequences, codes[:, 0])
        self.teacher = teacher
        self.weight = weight
        self.events: torch.Tensor | None = None
        self.trie = ItemTrie.build(codes, vocabulary.level_sizes)
        self.nodes = self.trie.paths(torch.arange(len(codes)))
        self.codes = torch.from_numpy(np.asarray(codes, np.int64))
        self.tokens = torch.from_numpy(vocabulary.all_ids)
        self._sizes = torch.bincount(self.codes[:, 0]).float()
        self.targets = np.concatenate([np.empty(0, np.int32), *(sequence[1:] for sequence in sequences)])
        assert len(self.targets) == len(teacher) == first_target(sequences)[-1]

    def __call__(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss to add, a scalar: weight * (loss of the teacher - loss of the targets), summed over item tokens.

        Both losses have the same log-sum of exponentials, so only the logits of item tokens are left.

        Args:
            scores: float [P, M], the logits of `tokens` at the positions of `predicting(labels)`.
            labels: int64 [B, T], -100 where a token is no target.
        """
        assert self.events is not None, "the events of the batch are set"
        first = (self.events >= 0).flatten().nonzero()[:, 0]
        # `scores` holds one row per predicting position, in order: row[p] is that of flat position p.
        row = (predicting(labels).flatten().cumsum(0) - 1)[first - 1].cpu()
        events = self.events.flatten()[first].cpu().numpy()
        toward, begin = torch.zeros(scores.shape), 0
        for level, shares in enumerate(self.distributions(events)):
            own = self.codes[torch.from_numpy(self.targets[events]).long(), level]
            shares[torch.arange(len(own)), own] -= (shares.sum(dim=1) > 0).float()
            toward[row + level, begin : begin + shares.shape[1]] = shares
            begin += shares.shape[1]
        return -self.weight * (toward.to(scores.device) * scores.float()).sum()

    def distributions(self, events: np.ndarray) -> list[torch.Tensor]:
        """The teacher's distributions of the next code on the paths of E targets.

        Args:
            events: int [E], numbers of the targets, as in `first_target`.

        Returns:
            Per level, float32 [E, C_l]; a row is 0 if the teacher has nothing to say there.
        """
        shares, target = self.shares(events), torch.from_numpy(self.targets[events]).long()
        own = self.first_codes(events)[:, None]
        even, more = shares.even.gather(1, own)[:, 0], torch.where(shares.firsts == own, shares.more, 0)
        width = self.trie.level_sizes[0] - shares.even.shape[1]
        whole = torch.nn.functional.pad(shares.even * self._sizes, (0, width))
        found = [whole.scatter_add(1, shares.firsts, shares.more).clamp(min=0)]
        for level in range(1, self.trie.levels):
            parents = self.nodes[level - 1][target]
            below = self.nodes[level - 1][shares.items] == parents[:, None]
            example, children = self.trie.children(level, parents)
            q = torch.zeros(len(events), self.trie.level_sizes[level])
            q[example, self.trie.codes(level, children)] = even[example] * self.trie.counts(level, children)
            found.append(q.scatter_add(1, self.codes[shares.items, level], torch.where(below, more, 0)).clamp(min=0))
        totals = [q.sum(dim=1, keepdim=True) for q in found]
        return [
            torch.where(total > LEAST, q / total.clamp(min=LEAST), 0) for q, total in zip(found, totals, strict=True)
        ]

    def shares(self, events: np.ndarray) -> Shares:
        """The teacher's distributions over the items at E targets.

        Args:
            events: int [E], as for `distributions`.
        """
        rows = self.teacher.rows[events]
        items, shares, rest = (torch.from_numpy(rows[name].astype(kind)) for name, kind in _PARTS)
        firsts = self.codes[items, 0]
        best = torch.zeros_like(rest).scatter_add(1, firsts, torch.ones_like(shares))
        even = rest / (self._sizes - best).clamp(min=1)
        return Shares(items, firsts, shares - even.gather(1, firsts), even)

    def first_codes(self, events: np.ndarray) -> torch.Tensor:
        """The first codes of E targets, int64 [E]; `events` as for `distributions`."""
        return self.codes[torch.from_numpy(self.targets[events]).long(), 0]


_PARTS = (("items", np.int64), ("shares", np.float32), ("rest", np.float32))


def distill_loss(
    teacher: Teacher | None,
    sequences: Sequence[np.ndarray],
    codes: np.ndarray,
    vocabulary: ItemVocabulary,
    weight: float,
) -> DistillLoss | None:
    """As `DistillLoss`; None if the weight is 0.

    Raises:
        UserError: there is no teacher, or it is of other sequences or codes.
    """
    if not weight:
        return None
    if teacher is None:
        raise UserError(f"--train.distill.weight {weight} needs a teacher; pass teacher=, or set it to 0.")
    return DistillLoss(teacher, sequences, codes, vocabulary, weight)
