"""What fused experts would say to a user if they had never seen this user's events.

Experts that count have seen the very items that come next in a training history. Their counts are sums over users, so
what one user adds to them is taken out exactly, without fitting them again. Transformers are fitted in folds over
users. The text vectors do not depend on users; which items can be text neighbours stays as in the whole log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from llmrec.collaborative.base import recent
from llmrec.collaborative.config import BY_TEXT, NETWORKS, ExpertName
from llmrec.collaborative.counting import DAMPING, RECENCY, DecayedMarkov, SmoothedMarkov, weighted_pairs
from llmrec.collaborative.experts import FLOOR
from llmrec.collaborative.folds import Folds
from llmrec.collaborative.fused import FusedExperts


class HeldOutExperts:
    """Fused experts, each history scored without the events of its own user.

    Args:
        fused: the experts.
        sequences: per user, int [n], the training items that the experts were fitted on, as rows of `fused`.
        networks: the Transformers among the experts, in folds over the users of `sequences`.

    Raises:
        ValueError: the experts were fitted on other sequences.
    """

    def __init__(
        self,
        fused: FusedExperts,
        sequences: Sequence[np.ndarray],
        networks: Mapping[ExpertName, Folds] | None = None,
    ) -> None:
        self.networks = networks or {}
        self.fused, self.experts = fused, fused.experts
        self.sequences = [self.experts.rows[sequence] for sequence in sequences]
        n_items = len(self.experts.counts)
        if not np.array_equal(np.bincount(np.concatenate(self.sequences), minlength=n_items), self.experts.counts):
            raise ValueError("the experts were fitted on other sequences")
        self._pairs: dict[ExpertName, sparse.csr_matrix] = {
            name: weighted_pairs(self.sequences, n_items, system.settings)
            for name, system in self.experts.systems.items()
            if name in self.experts.names and isinstance(system, DecayedMarkov)
        }
        self._totals = {
            name: np.asarray(pairs.sum(axis=1)).ravel() + self.experts.systems[name].settings.shrinkage  # type: ignore[attr-defined]
            for name, pairs in self._pairs.items()
        }
        users = [np.unique(sequence) for sequence in self.sequences]
        self._users = np.bincount(np.concatenate(users), minlength=n_items)

    def scores(self, users: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
        """The weighted sum of the experts for each item, float32 [B, N].

        Args:
            users: int [B], whose events are taken out.
            histories: B histories that are not empty, rows of `fused`, each a part of its user's sequence.
        """
        known = [self.experts.rows[history] for history in histories]
        own, weights = self._own(users), self.fused.weights
        cold = np.tile(self.experts.counts == 0, (len(known), 1))
        cold[own.row, own.item] = own.left(self.experts.counts) == 0
        warm_sum = np.zeros(cold.shape, np.float32)
        cold_sum = np.full(cold.shape, weights.bonus, np.float32)
        for name, warm_weight, cold_weight in zip(self.experts.names, weights.warm, weights.cold, strict=True):
            values = self._values(name, users, known, own)
            warm_sum += np.float32(warm_weight) * values
            if name in BY_TEXT:
                cold_sum += np.float32(cold_weight) * values
        return np.where(cold, cold_sum, warm_sum)[:, self.experts.rows]

    def _own(self, users: np.ndarray) -> "_Own":
        several, which = np.unique(users, return_inverse=True)
        return _Own(which, [self.sequences[user] for user in several], len(self.experts.counts))

    def _values(self, name: ExpertName, users: np.ndarray, histories: list[np.ndarray], own: "_Own") -> np.ndarray:
        """As those of `Experts`, float32 [B, number of counts]; those of cold items may be anything if `name` does not
        go by text."""
        if name == "popularity":
            counts = np.tile(self.experts.counts, (len(histories), 1))
            counts[own.row, own.item] = own.left(self.experts.counts)
            return np.log(np.maximum(counts, 1)).astype(np.float32)
        if name == "item-knn":
            return np.log(np.maximum(self._similar(histories, own), 0) + np.float32(FLOOR))
        if name in NETWORKS:
            return self.networks[name].values(users, histories)
        system = self.experts.systems[name]
        if isinstance(system, DecayedMarkov):
            return np.log(np.maximum(self._expected(name, system, histories, own), 0) + np.float32(FLOOR))
        return system.scores(histories)

    def _expected(
        self, name: ExpertName, system: DecayedMarkov, histories: list[np.ndarray], own: "_Own"
    ) -> np.ndarray:
        """The transitions from each history to each item, as `expected` of `system`.

        With pairs C, row totals D, and C_u, D_u of the user: the rows of the user's items become
        (C - C_u) / (D - D_u); all other rows stay C / D.
        """
        pairs, totals = self._pairs[name], self._totals[name]
        mine = weighted_pairs(own.sequences, len(own.items), system.settings)
        left = totals[own.items] - np.asarray(mine.sum(axis=1)).ravel()
        around = recent(histories, system.settings.recency, len(totals))
        if isinstance(system, SmoothedMarkov):
            around = around @ system.neighbours
        weights = np.asarray(around[own.row, own.item]).ravel()
        shares = weights / left[own.local]
        change = shares - weights / totals[own.item]
        scaled = around @ sparse.diags(1 / totals) + sparse.csr_matrix((change, (own.row, own.item)), around.shape)
        taken = sparse.csr_matrix((shares, (own.row, own.local)), (len(histories), len(own.items))) @ mine
        taken = sparse.csr_matrix((taken.data, own.items[taken.indices], taken.indptr), around.shape)
        result = scaled @ pairs - taken
        return system.shared(result) if isinstance(system, SmoothedMarkov) else np.asarray(result.todense(), np.float32)

    def _similar(self, histories: list[np.ndarray], own: "_Own") -> np.ndarray:
        """As `scores` of item-kNN, when one user fewer has each of the user's items, and each pair of them."""
        users = np.maximum(self._users, 1)
        before, after = users**-DAMPING, np.maximum(users - 1, 1) ** -DAMPING
        weights = recent(histories, RECENCY, len(users)).astype(np.float64)  # each history holds the user's items only
        similarity = self.experts.systems["item-knn"].similarity  # type: ignore[attr-defined]
        sums = np.asarray((weights @ sparse.diags(after / before) @ similarity).todense())
        of_item = np.asarray((weights @ sparse.diags(after))[own.row, own.item]).ravel()
        together = np.bincount(own.row, of_item, len(histories))[own.row] - of_item
        place = own.row, own.item
        sums[place] = (sums[place] / before[own.item] - together) * after[own.item]
        events = np.tile(1e-6 * self.fused.popularity, (len(histories), 1))
        events[place] = 1e-6 * own.left(self.experts.counts) / (self.experts.counts.max() + 1)
        sums += events
        return sums.astype(np.float32)


@dataclass(frozen=True)
class _Own:
    """The events of the users of B histories.

    Attributes:
        user: int [B], numbers of users in `sequences`.
        whole: per user, int [n], their items.
        n_items: number of all items.
    """

    user: np.ndarray
    whole: list[np.ndarray]
    n_items: int

    @cached_property
    def _keys(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct pairs of user and item, as numbers in rising order, and the place of each event in them."""
        users = np.repeat(np.arange(len(self.whole)), [len(sequence) for sequence in self.whole])
        keys, places = np.unique(users * self.n_items + np.concatenate(self.whole), return_inverse=True)
        return keys, places

    @property
    def items(self) -> np.ndarray:
        """Int [M], the items of each user, one user after the other; place m of them is called local item m."""
        return self._keys[0] % self.n_items

    @property
    def sequences(self) -> list[np.ndarray]:
        """Per user, int [n], the local items."""
        return np.split(self._keys[1], np.cumsum([len(sequence) for sequence in self.whole])[:-1])

    @cached_property
    def _entries(self) -> tuple[np.ndarray, np.ndarray]:
        of_user = self._keys[0] // self.n_items
        first = np.searchsorted(of_user, self.user)
        counts = np.searchsorted(of_user, self.user, side="right") - first
        row = np.repeat(np.arange(len(self.user)), counts)
        return row, np.arange(len(row)) + np.repeat(first - (np.cumsum(counts) - counts), counts)

    @property
    def row(self) -> np.ndarray:
        """Int [E]: each history, once for each of its user's items."""
        return self._entries[0]

    @property
    def local(self) -> np.ndarray:
        """Int [E]: the local items of each history's user."""
        return self._entries[1]

    @cached_property
    def item(self) -> np.ndarray:
        """Int [E]: the items of each history's user."""
        return self.items[self.local]

    def left(self, counts: np.ndarray) -> np.ndarray:
        """Int [E]: the events of `item` without those of the user, from all events int [N]."""
        return counts[self.item] - np.bincount(self._keys[1])[self.local]
