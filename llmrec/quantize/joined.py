"""Collaborative semantic IDs: the quantizer gets the text vectors joined with vectors of behaviour.

    text [D]       (x - mean) * scale          the D variances sum to D
    behaviour [d]  weight * the same of v      the d variances sum to weight^2 * D

x is the text vector of an item, and v its row of `collaborative_vectors`, a factorization of the co-occurrences in the
training log. Items that are taken together are then near, and get near codes. An item without v (cold, or added later)
gets the value that ridge regression predicts from its text, a map from attributes to factors (Gantner et al., ICDM
2010). Mean, scale and regression are fitted on the items with v alone, so that no other item changes them. Each part is
scaled as a whole and not whitened, which would give a direction in which texts hardly differ the weight of all others.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from llmrec.collaborative.behaviour import Behaviour, collaborative_vectors
from llmrec.console import get_logger
from llmrec.errors import UserError
from llmrec.quantize.base import BLOCK, sample
from llmrec.quantize.config import TokenizeConfig

log = get_logger(__name__)

PENALTIES = np.logspace(-4, 4, 17)
"""Penalties of the ridge regression, per fitted row; the one with the smallest leave-one-out error is taken."""


@dataclass(frozen=True, eq=False)
class JoinedVectors:
    """Joins text vectors [n, D] with behaviour [n, d], known or predicted.

    Attributes:
        mean: of the text vectors, float32 [D].
        scale: of the text vectors.
        ridge: the regression, float32 [D, d]: (x - mean) * scale @ ridge is the predicted behaviour of x.
        behaviour: of the N items of the tokenizer, float32 [N, d]; NaN in the row of an item whose behaviour is
            predicted.

    Raises:
        ValueError: the shapes do not fit together, or a number is not finite.
    """

    mean: np.ndarray
    scale: float
    ridge: np.ndarray
    behaviour: np.ndarray

    def __post_init__(self) -> None:
        dims = self.behaviour.shape[-1]
        if self.mean.ndim != 1 or self.ridge.shape != (len(self.mean), dims) or self.behaviour.ndim != 2:
            raise ValueError(f"mean {self.mean.shape}, ridge {self.ridge.shape}, behaviour {self.behaviour.shape}")
        if not all(np.isfinite(each).all() for each in (self.mean, self.scale, self.ridge, self.behaviour[self.known])):
            raise ValueError("joined vectors with numbers that are not finite")

    @classmethod
    def fit(cls, config: TokenizeConfig, x: np.ndarray, behaviour: Behaviour) -> Self:
        """Learn from the items that occur with another one more often than by chance, at most `fit_rows` of them.

        Args:
            config: with `collaborative` and `collaborative_weight`.
            x: text vectors, floats [N, D]; may be memory-mapped.
            behaviour: the events and pairs of the same items in the training log.

        Raises:
            UserError: there are no more items than dimensions, or fewer than two items to learn from, or their text
                vectors are all equal.
        """
        from sklearn.linear_model import RidgeCV

        flag = f"--tokenize.collaborative {config.collaborative}"
        vectors = collaborative_vectors(behaviour, config.collaborative, config.seed, "--tokenize.collaborative")
        known = np.asarray(vectors.any(axis=1))
        rows = sample(np.flatnonzero(known), config.fit_rows, config.seed)
        if len(rows) < 2:
            raise UserError(
                f"{flag}: {len(rows)} of {len(known)} items occur with another one in the training log more often than "
                "by chance; set it to 0."
            )
        texts, factors = np.asarray(x[rows], np.float64), vectors[rows].astype(np.float64)
        mean, centre = texts.mean(axis=0).astype(np.float32), factors.mean(axis=0)
        texts, factors = texts - mean, factors - centre
        spread, spread_of_factors = (np.sqrt((each**2).sum() / len(rows)) for each in (texts, factors))
        if not spread or not spread_of_factors:
            what = "text" if not spread else "behaviour"
            raise UserError(
                f"{flag}: all {len(rows)} items with behaviour have the same vector of {what}; set it to 0."
            )
        scale = float(np.sqrt(len(mean)) / spread)
        by = config.collaborative_weight * np.sqrt(len(mean)) / spread_of_factors
        regression = RidgeCV(PENALTIES * len(rows), fit_intercept=False).fit(texts * scale, factors * by)
        log.info(
            "%d of %d items have behaviour; the others get it predicted from their texts (ridge penalty %g per item)",
            known.sum(),
            len(known),
            regression.alpha_ / len(rows),
        )
        own = ((vectors - centre) * by).astype(np.float32)
        own[~known] = np.nan
        return cls(mean, scale, np.ascontiguousarray(regression.coef_.T, np.float32), own)

    @property
    def known(self) -> np.ndarray:
        """bool [N]: the items with behaviour of their own."""
        return ~np.isnan(self.behaviour[:, 0])

    def of_rows(self, rows: np.ndarray) -> Self:
        """The same for other items: int64 [n], their present rows, or -1 for an item that is new."""
        behaviour = np.full((len(rows), self.behaviour.shape[1]), np.nan, np.float32)
        behaviour[rows >= 0] = self.behaviour[rows[rows >= 0]]
        return replace(self, behaviour=behaviour)

    def join(self, x: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """The joined vectors, float32 [n, D + d].

        Args:
            x: text vectors, floats [n, D]; may be memory-mapped.
            rows: int64 [n], the items' rows, or -1 for an item that is new; default: all are new.

        Raises:
            UserError: D differs from that of `fit`.
        """
        dims = len(self.mean)
        if x.shape[1] != dims:
            raise UserError(
                f"the embeddings have {x.shape[1]} dimensions, this tokenizer was fitted on {dims}; embed with the "
                "encoder it was fitted with"
            )
        joined = np.empty((len(x), dims + self.ridge.shape[1]), np.float32)
        for start in range(0, len(x), BLOCK):
            # In float64, so that a vector does not depend on the others of its block.
            texts = (np.asarray(x[start : start + BLOCK], np.float64) - self.mean) * self.scale
            joined[start : start + BLOCK, :dims] = texts
            joined[start : start + BLOCK, dims:] = texts @ self.ridge.astype(np.float64)
        if rows is not None:
            has = rows >= 0
            has[has] = self.known[rows[has]]
            joined[has, dims:] = self.behaviour[rows[has]]
        return joined

    def tensors(self) -> dict[str, np.ndarray]:
        """All attributes but `behaviour`, as named arrays."""
        return {"mean": self.mean, "scale": np.array([self.scale]), "ridge": self.ridge}

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray], behaviour: np.ndarray) -> Self:
        """The inverse of `tensors`."""
        return cls(tensors["mean"], float(tensors["scale"][0]), tensors["ridge"], behaviour)
