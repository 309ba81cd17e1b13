"""SASRec for warm items and text neighbours for cold ones, in one ranking with a quota of cold items."""

from collections.abc import Sequence

import numpy as np

from llmrec.collaborative.base import BATCH, BaselineSystem, only, ranks_from_scores
from llmrec.collaborative.bsarec import BSARec
from llmrec.collaborative.counting import ItemKNN, Markov, Popularity, TextKNN
from llmrec.collaborative.ease import EASE
from llmrec.collaborative.sasrec import SASRec
from llmrec.collaborative.transitions import DecayedMarkov, SmoothedMarkov
from llmrec.data.sequences import EvalExamples
from llmrec.decode.rankings.hybrid import interleave
from llmrec.errors import UserError
from llmrec.evaluation.config import READS_TEXT, EvaluateConfig
from llmrec.evaluation.protocol import System


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

    def ranks(self, cases: EvalExamples, filter_seen: bool, among: np.ndarray | None = None) -> np.ndarray:
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


COUNTING: dict[str, type[BaselineSystem]] = {
    "popularity": Popularity,
    "markov": Markov,
    "item-knn": ItemKNN,
    "decayed-markov": DecayedMarkov,
    "ease": EASE,
}


def fit_baselines(
    config: EvaluateConfig,
    train_sequences: list[np.ndarray],
    n_items: int,
    validation: EvalExamples,
    vectors: np.ndarray | None = None,
) -> list[System]:
    """What `config.baselines` names, in that order; sasrec-knn stands once for each quota, all on one SASRec.

    Args:
        config: names, quotas, sizes, seed.
        train_sequences: U int arrays of catalogue rows, oldest first, some perhaps empty.
        n_items: N.
        validation: cases that SASRec stops by; see there.
        vectors: of the N items' texts, float [N, D], for text-knn and sasrec-knn.

    Raises:
        UserError: text-knn or sasrec-knn without vectors, or too little to train SASRec on.
        ValueError: the training part has no events.
    """
    fitted: dict[str, BaselineSystem] = {}

    def get(name: str) -> BaselineSystem:
        if name not in fitted:
            fitted[name] = _make(name, config, validation, vectors).fit(train_sequences, n_items)
        return fitted[name]

    systems: list[System] = []
    for name in config.baselines:
        if name == "sasrec-knn":
            sasrec, text_knn = get("sasrec"), get("text-knn")
            cold = np.flatnonzero(sasrec.popularity == 0)
            systems += [SASRecKNN(sasrec, text_knn, cold, quota, max(config.k)) for quota in config.quotas]
        else:
            systems.append(get(name))
    return systems


def _make(name: str, config: EvaluateConfig, validation: EvalExamples, vectors: np.ndarray | None) -> BaselineSystem:
    if name == "sasrec":
        return SASRec(config.sasrec, validation, config.seed)
    if name == "bsarec":
        return BSARec(config.bsarec, validation, config.seed)
    if name in READS_TEXT:
        if vectors is None:
            raise UserError(
                f"--evaluate.baselines {' '.join(config.baselines)}: text-knn, sasrec-knn and smoothed-markov need "
                "text_vectors, the vectors of the items' texts"
            )
        return SmoothedMarkov(vectors) if name == "smoothed-markov" else TextKNN(vectors)
    return COUNTING[name]()
