"""A learned order of the best items of a ranking: LambdaRank (Burges 2010) with LightGBM's trees.

The trees start from the fused scores, which a conditional logit has learnt, and correct them. With few lists they
correct little; trees that start from nothing would have to learn the fused order first.

ranker = LearnedRanker.fit(lists, hits, seed=0, share=0.97)
ranker.order(lists)    # int64 [n, M], the places of each list in their new order
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Self

import numpy as np

from llmrec.collaborative.base import ndcg, top
from llmrec.collaborative.fusion import best_bonus, limits_of
from llmrec.console import get_logger
from llmrec.errors import UserError

log = get_logger(__name__)

FOLDS = 4
"""Number of boosters, whose scores are added. Each is learnt without a fold of the lists, which it orders to tell
whether the ranker helps."""
LISTED = 100
"""Items that are ordered."""
ROUNDS = 500
"""Most trees of a booster."""
FURTHEST = 50.0
"""Most that an item starts behind the first one of its list, where the trees start from log-odds."""
WAIT = 30
"""Trees without a gain after which the boosters stop."""
LEAVES = (4, 15)
"""Leaves of a tree, small and large: the folds choose. Few lists want small trees."""
SETTINGS = {
    "objective": "lambdarank",
    "learning_rate": 0.05,
    "min_data_in_leaf": 200,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambdarank_truncation_level": 20,
    "metric": "ndcg",
    "eval_at": [10],
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


@dataclass(frozen=True)
class Lists:
    """The M best items after each of n histories.

    Attributes:
        items: int64 [n, M], best first, columns of the scores that they come from; -1 where there are no more.
        values: float32 [n, M, F], what each expert says.
        fused: float32 [n, M], not increasing within a list; -inf where there is no item.
        is_cold: bool [n, M].
        lengths: int [n], items of the histories.
    """

    items: np.ndarray
    values: np.ndarray
    fused: np.ndarray
    is_cold: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    @classmethod
    def best(cls, scores: np.ndarray, values: np.ndarray, is_cold: np.ndarray, lengths: np.ndarray) -> "Lists":
        """The `LISTED` best of N items.

        Args:
            scores: float32 [n, N]; -inf for what is not listed.
            values: float32 [n, N, F].
            is_cold: bool [N], or [n, N].
            lengths: int [n].
        """
        items = top(scores, min(LISTED, scores.shape[1]))
        rows = np.arange(len(scores))[:, None]
        there = items >= 0
        fused = np.where(there, scores[rows, items], -np.inf).astype(np.float32)
        return cls(
            items, values[rows, items], fused, there & np.broadcast_to(is_cold, scores.shape)[rows, items], lengths
        )

    def where(self, chosen: np.ndarray) -> "Lists":
        """The lists of a mask, bool [n], or of rows, int [m]."""
        return Lists(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    @classmethod
    def joined(cls, parts: Sequence["Lists"]) -> "Lists":
        """The lists of all parts, which have one M."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def starts(self) -> np.ndarray:
        """What the trees correct, float32 [n, M]: the fused scores relative to the first, at least -`FURTHEST`."""
        first = np.where(np.isfinite(self.fused[:, :1]), self.fused[:, :1], 0)
        return np.maximum(self.fused - first, -FURTHEST)

    def features(self) -> np.ndarray:
        """What the trees see: float32 [n, M, 3 F + 4]."""
        n, size = self.items.shape
        places = np.argsort(np.argsort(-self.values, axis=1, kind="stable"), axis=1)
        behind = self.values - self.values.max(axis=1, keepdims=True)
        own = np.broadcast_to(np.arange(size), (n, size))
        whole = np.broadcast_to(self.lengths[:, None], (n, size))
        single = np.stack([self.fused - self.fused[:, :1], own, whole, self.is_cold], axis=2)
        return np.concatenate([self.values, places, behind, single], axis=2).astype(np.float32)


class LearnedRanker:
    """Trees that order lists of candidates.

    LightGBM is needed where lists are ordered, and not to load a bundle.

    Args:
        texts: the boosters, as LightGBM writes them; their scores are added.
        bonus: added to the score of cold items.
        gain: what it adds to the mean NDCG@10 of the validation examples, measured on lists that it has not seen.
        start: weight of `Lists.starts` in the score of each booster; 0 for boosters that were learnt without.
    """

    def __init__(self, texts: Sequence[str], bonus: float = 0.0, gain: float = 0.0, start: float = 1.0) -> None:
        self.texts = list(texts)
        self.bonus = bonus
        self.gain = gain
        self.start = start

    @cached_property
    def boosters(self) -> list[Any]:
        """The trees.

        Raises:
            UserError: LightGBM is not installed, or can't read a text.
        """
        lightgbm = _lightgbm()
        try:
            return [lightgbm.Booster(model_str=text) for text in self.texts]
        except (ValueError, lightgbm.basic.LightGBMError) as error:
            raise UserError(f"the learned ranker holds no model of LightGBM: {error}.") from None

    @classmethod
    def fit(
        cls, lists: Lists, hits: np.ndarray, seed: int = 0, share: float = 0.97, examples: int | None = None
    ) -> Self | None:
        """Learn from n lists that hold their target.

        Each fold of the lists is ordered by a booster that was learnt without it. On all of them together it is
        decided how many trees the boosters have, whether the ranker is kept, and how large the bonus of cold items is:
        as in `fit_fusion`.

        Args:
            lists: n lists.
            hits: bool [n, M], the targets, one per list.
            seed: of the folds and of the trees.
            share: least recall@10 of warm targets, as a share of the one that they have without any cold item.
            examples: number of the validation examples that the lists come from; default: n.

        Returns:
            The ranker; None if it does not raise the NDCG@10 of lists that it has not seen by more than one standard
            error: with few examples the fused order is better.

        Raises:
            UserError: LightGBM is not installed.
        """
        lightgbm = _lightgbm()
        n, rng = len(lists), np.random.default_rng(seed)
        if n < FOLDS:
            return None
        table, starts = lists.features(), lists.starts()
        folds = [np.sort(fold) for fold in np.array_split(rng.permutation(n), FOLDS)]
        boosters, trees = _train(lightgbm, table, starts, hits, folds, seed)
        scores = starts.astype(float)
        for fold, booster in zip(folds, boosters, strict=True):
            scores[fold] += _predict(booster, table[fold], trees)
        ranker = cls([booster.model_to_string(num_iteration=trees) for booster in boosters])
        cold_target = (lists.is_cold & hits).any(axis=1)
        if cold_target.any():
            limits = limits_of(np.where(lists.items >= 0, scores, -np.inf), lists.is_cold, hits)
            alone = float((limits[~cold_target] > -np.inf).mean())
            # Added scores of several boosters are that much larger than the score of one.
            ranker.bonus = FOLDS * best_bonus(limits, cold_target, share * alone)
        order = _order(lists, scores + lists.is_cold * ranker.bonus / FOLDS)
        gain = _ndcg(np.take_along_axis(hits, order, axis=1)) - _ndcg(hits)
        worth = gain.mean() > gain.std() / np.sqrt(len(gain))
        log.info("learned ranker: NDCG@10 %+.4f on %d lists%s", gain.mean(), len(gain), "" if worth else "; left out")
        ranker.gain = float(gain.sum() / (examples or n))
        return ranker if worth else None

    @property
    def content(self) -> dict[str, Any]:
        """What JSON holds."""
        return {"bonus": self.bonus, "gain": self.gain, "start": self.start, "boosters": self.texts}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """The ranker with this content; where LightGBM is installed, it is seen whether it can read the trees.

        Raises:
            UserError: it can't.
            ValueError, KeyError, TypeError: the content is damaged.
        """
        bonus, texts = float(content["bonus"]), content["boosters"]
        gain, start = (float(content.get(name, 0.0)) for name in ("gain", "start"))  # earlier bundles lack them
        if not np.isfinite([bonus, gain, start]).all() or not isinstance(texts, list) or not texts:
            raise ValueError("expected a finite bonus, gain and start, and boosters")
        ranker = cls([str(text) for text in texts], bonus, gain, start)
        if find_spec("lightgbm") is not None:
            _ = ranker.boosters
        return ranker

    def reorder(self, scores: np.ndarray, lists: Lists) -> np.ndarray:
        """Scores float32 [n, N] in which the listed columns exchange their scores; all others keep their places."""
        order, changed = self.order(lists), scores.copy()
        there = (lists.items >= 0).ravel()
        rows = np.repeat(np.arange(len(order)), order.shape[1])[there]
        changed[rows, np.take_along_axis(lists.items, order, axis=1).ravel()[there]] = lists.fused.ravel()[there]
        return changed

    def order(self, lists: Lists) -> np.ndarray:
        """The places of n lists in their new order, int64 [n, M]; ties stay as they are, places without item last."""
        table = lists.features()
        scores = np.sum([_predict(booster, table) for booster in self.boosters], axis=0)
        scores += len(self.texts) * self.start * lists.starts()
        return _order(lists, scores + lists.is_cold * self.bonus)


def _train(
    lightgbm: Any, table: np.ndarray, starts: np.ndarray, hits: np.ndarray, folds: Sequence[np.ndarray], seed: int
) -> tuple[list[Any], int]:
    """A booster per fold (rows of the table), learnt from `starts` without it, and the number of trees that counts.

    The folds choose the size of the trees and their number, the same for all, by the mean NDCG@10: boosters that stop
    one by one have scores of different scales, so that no bonus fits all, and the longest one outvotes the others.
    """
    n, size, width = table.shape
    labels = hits.ravel().astype(int)
    data = lightgbm.Dataset(table.reshape(-1, width), labels, group=[size] * n, init_score=starts.ravel())
    rows = np.arange(n * size).reshape(n, size)
    splits = [(np.delete(rows, fold, axis=0).ravel(), rows[fold].ravel()) for fold in folds]
    stopping: list[Any] = [lightgbm.early_stopping(WAIT, verbose=False)]
    tried = []
    for leaves in LEAVES:
        settings = {**SETTINGS, "num_leaves": leaves, "seed": seed}
        found = lightgbm.cv(settings, data, ROUNDS, folds=splits, callbacks=stopping, return_cvbooster=True)
        tried.append((max(found["valid ndcg@10-mean"]), found["cvbooster"]))
    best = max(tried, key=lambda each: each[0])[1]
    return best.boosters, best.best_iteration


def _predict(booster: Any, table: np.ndarray, trees: int | None = None) -> np.ndarray:
    """Scores float64 [n, M] of a table [n, M, features], by the first `trees`, or by all."""
    found = booster.predict(table.reshape(-1, table.shape[2]), num_iteration=trees)
    return np.asarray(found).reshape(table.shape[:2])


def _order(lists: Lists, scores: np.ndarray) -> np.ndarray:
    return np.argsort(np.where(lists.items >= 0, -scores, np.inf), axis=1, kind="stable")


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise UserError("--experts.learned true needs lightgbm: pip install 'llmrec[ranker]'.") from None
    return lightgbm


def _ndcg(hits: np.ndarray) -> np.ndarray:
    """NDCG@10, float64 [n], of lists with one target each, bool [n, M]."""
    return ndcg(hits.argmax(axis=1) + 1.0)
