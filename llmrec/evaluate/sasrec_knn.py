"""SASRec for warm items and text neighbours for cold ones, in one ranking with a quota of cold items."""

from collections.abc import Sequence

import numpy as np

from llmrec.data.split import Cases
from llmrec.decode.interleave import interleave
from llmrec.evaluate.baselines import BATCH, BaselineSystem, only
from llmrec.evaluate.metrics import ranks_from_scores


class SASRecKNN:
    """Of the first k of a ranking, floor(quota k) are the cold items that text-kNN puts first, the others SASRec's.

    Args:
        sasrec: fitted; scores -inf what has no training events.
        text_knn: fitted.
        cold: rows of the items without training events, int [E].
        quota: share of the cold items.
        depth: items that a user gets, the largest cut-off.
    """

    def __init__(
        self, sasrec: BaselineSystem, text_knn: BaselineSystem, cold: np.ndarray, quota: float, depth: int
    ) -> None:
        self.name = f"sasrec-knn@{100 * quota:g}%"
        self.sasrec = sasrec
        self.text_knn = text_knn
        self.cold = cold
        self.quota = quota
        self.depth = depth

    def ranks(self, cases: Cases, filter_seen: bool, among: np.ndarray | None = None) -> np.ndarray:
        """Place of each case's target in its merged ranking, float64 [n], inf where it is not among the first."""
        ranks = [np.empty(0)]
        for start in range(0, len(cases), BATCH):
            histories, targets = cases.histories[start : start + BATCH], cases.targets[start : start + BATCH]
            warm, cold = self.sasrec.scores(histories), only(self.text_knn.scores(histories), self.cold)
            if among is not None:
                warm, cold = only(warm, among), only(cold, among)
            seen = histories if filter_seen else [history[:0] for history in histories]
            ranks.append(self._places(_without(warm, seen, targets), _without(cold, seen, targets), targets))
        return np.concatenate(ranks)

    def _places(self, warm: np.ndarray, cold: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Places of B targets where their ranks in the two rankings, ties against them, fall in the merged one."""
        n_items, ordinals = warm.shape[1], np.arange(self.depth)
        # Ranks are merged, not items: an item's order among its ties must not come into it.
        first, second = (
            np.where(ordinals < np.isfinite(scores).sum(axis=1)[:, None], ordinals + offset, -1)
            for scores, offset in ((warm, 0), (cold, n_items))
        )
        merged = interleave(first, second, self.quota, self.depth)
        own = np.minimum(ranks_from_scores(warm, targets), ranks_from_scores(cold, targets) + n_items) - 1
        hits = merged == own[:, None]
        return np.where(hits.any(axis=1), 1.0 + hits.argmax(axis=1), np.inf)


def _without(scores: np.ndarray, seen: Sequence[np.ndarray], targets: np.ndarray) -> np.ndarray:
    """The scores [B, N] in which what each user has seen is -inf, except the target."""
    rows, kept = np.arange(len(targets)), scores.copy()
    kept[np.repeat(rows, [len(items) for items in seen]), np.concatenate(seen)] = -np.inf
    kept[rows, targets] = scores[rows, targets]
    return kept
