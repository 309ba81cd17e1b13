"""Distillation through the trie: a teacher's distribution over items teaches each code of a semantic ID.

The teacher's probability of a code after a prefix is the share of the items below the prefix that go on with the code:
q(c | prefix) = sum of p(i) below (prefix, c) / sum of p(i) below prefix. On the path of each target item, level by
level, the loss is the cross-entropy of q and the model, mixed with that of the target's own code.

A model whose logits are log q everywhere gives each item the probability p(i) by the chain rule. A teacher that gives
the target all its probability gives the usual loss.
"""

from collections.abc import Sequence

import numpy as np
import torch

from llmrec.collaborative.teacher import Teacher
from llmrec.data.sequences import first_target
from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie
from llmrec.model.tokens import ItemVocabulary
from llmrec.tasks.mixture import predicting

LEAST = 1e-6
"""Least probability of a prefix for which the teacher has a say about its next code: float16 knows nothing below."""


class DistillLoss:
    """What distillation adds to the usual loss.

    Args:
        teacher: of the training sequences.
        sequences: per user, int [n], training items.
        codes: int [N, L], the semantic ID of every item.
        vocabulary: the item tokens.
        weight: share of the teacher in the loss of an item token.

    Attributes:
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
        self.ids = [torch.from_numpy(ids) for ids in vocabulary.ids]
        self.targets = np.concatenate([np.empty(0, np.int32), *(sequence[1:] for sequence in sequences)])
        assert len(self.targets) == len(teacher) == first_target(sequences)[-1]

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss to add, a scalar: weight * (loss of the teacher - loss of the targets), summed over item tokens.

        Both losses have the same log-sum of exponentials, so only the logits of item tokens are left.

        Args:
            logits: float [P, V], at the positions of `predicting(labels)`.
            labels: int64 [B, T], -100 where a token is no target.
        """
        assert self.events is not None, "the events of the batch are set"
        first = (self.events >= 0).flatten().nonzero()[:, 0]
        # `logits` holds one row per predicting position, in order: row[p] is that of flat position p.
        row = (predicting(labels).flatten().cumsum(0) - 1)[first - 1]
        events = self.events.flatten()[first].cpu().numpy()
        low = min(int(ids.min()) for ids in self.ids)
        high = max(int(ids.max()) for ids in self.ids) + 1
        ours = logits[:, low:high].float()
        toward = torch.zeros(ours.shape)
        for level, shares in enumerate(self.distributions(events)):
            own = self.codes[torch.from_numpy(self.targets[events]).long(), level]
            shares[torch.arange(len(own)), own] -= (shares.sum(dim=1) > 0).float()
            toward[(row.cpu() + level)[:, None], self.ids[level] - low] = shares
        return -self.weight * (toward.to(ours.device) * ours).sum()

    def distributions(self, events: np.ndarray) -> list[torch.Tensor]:
        """The teacher's distributions of the next code on the paths of E targets.

        Args:
            events: int [E], numbers of the targets, as in `first_target`.

        Returns:
            Per level, float32 [E, C_l]; a row is 0 if the teacher has nothing to say there.
        """
        rows, target = self.teacher.rows[events], torch.from_numpy(self.targets[events]).long()
        items, shares = (torch.from_numpy(rows[name].astype(kind)) for name, kind in _PARTS)
        rest = torch.from_numpy(rows["rest"].astype(np.float32))
        # The items of a first code that are not among the best share its rest evenly.
        firsts = self.codes[items, 0]
        others = self.trie.counts(0, torch.arange(len(self.trie.node_codes[0])))
        sizes = torch.zeros(rest.shape[1]).index_put((self.trie.codes(0, torch.arange(len(others))),), others.float())
        own = self.codes[target, 0][:, None]
        among = firsts == own
        even = rest.gather(1, own)[:, 0] / (sizes[own[:, 0]] - among.sum(dim=1)).clamp(min=1)
        width = self.trie.level_sizes[0]
        found = [torch.nn.functional.pad(rest, (0, width - rest.shape[1])).scatter_add(1, firsts, shares)]
        more = torch.where(among, shares - even[:, None], 0)
        for level in range(1, self.trie.levels):
            parents = self.nodes[level - 1][target]
            below = self.nodes[level - 1][items] == parents[:, None]
            example, children = self.trie.children(level, parents)
            q = torch.zeros(len(events), self.trie.level_sizes[level])
            q[example, self.trie.codes(level, children)] = even[example] * self.trie.counts(level, children)
            found.append(q.scatter_add(1, self.codes[items, level], torch.where(below, more, 0)).clamp(min=0))
        totals = [q.sum(dim=1, keepdim=True) for q in found]
        return [
            torch.where(total > LEAST, q / total.clamp(min=LEAST), 0) for q, total in zip(found, totals, strict=True)
        ]


_PARTS = (("items", np.int64), ("shares", np.float32))


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
