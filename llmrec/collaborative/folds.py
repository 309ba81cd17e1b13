"""Transformers over items, fitted in folds over users, so that each user has one that never saw the user's events."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from safetensors.numpy import load, save

from llmrec.atomic import write_bytes
from llmrec.collaborative.config import ExpertName
from llmrec.collaborative.fused import FusedExperts
from llmrec.collaborative.network import TrainedNetwork
from llmrec.console import get_logger
from llmrec.data.sequences import EvalExamples

log = get_logger(__name__)


def fold_file(name: ExpertName, fold: int) -> str:
    """The name of the file of one model."""
    return f"{name}-{fold}.safetensors"


class Folds:
    """One kind of Transformer. User u belongs to fold u % k, and model number u % k was fitted without this fold.

    Args:
        models: k fitted models.
    """

    def __init__(self, models: Sequence[TrainedNetwork]) -> None:
        self.models = models

    def values(self, users: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
        """The values after B histories, of users int [B]: float32 [B, N].

        An item that the other folds lack has the least value of its row.
        """
        found = np.zeros((len(users), len(self.models[0].popularity)), np.float32)
        for fold, model in enumerate(self.models):
            rows = np.flatnonzero(users % len(self.models) == fold)
            if len(rows):
                values = model.values([histories[row] for row in rows.tolist()])
                least = np.where(np.isneginf(values), np.inf, values).min(axis=1, keepdims=True)
                found[rows] = np.maximum(values, least)
        return found

    @classmethod
    def fit(
        cls,
        name: ExpertName,
        fused: FusedExperts,
        sequences: Sequence[np.ndarray],
        validation: EvalExamples,
        folds: int,
        folder: Path,
    ) -> Self:
        """Fit the models, except those that an interrupted call left in `folder`.

        Args:
            name: of the Transformer.
            fused: gives its settings and the text vectors of its N items.
            sequences: per user, int [n], training items, as rows of the experts' counts.
            validation: examples that the models stop by, with rows of the experts' counts.
            folds: k.
            folder: for one file per model.
        """
        fitted, models, n_items = fused.experts.systems[name], [], len(fused.experts.counts)
        assert isinstance(fitted, TrainedNetwork)
        for fold in range(folds):
            others = [sequence[: 0 if user % folds == fold else None] for user, sequence in enumerate(sequences)]
            model = fitted.untrained(validation, fused.experts.vectors)
            path = folder / fold_file(name, fold)
            if path.exists():
                counts = np.bincount(np.concatenate(others), minlength=n_items)
                model.restore(load(path.read_bytes()), counts, None)
            else:
                log.info("teacher: %s without fold %d of %d", name, fold + 1, folds)
                model.fit(others, n_items)
                write_bytes(path, save({part: np.ascontiguousarray(array) for part, array in model.arrays().items()}))
            models.append(model)
        return cls(models)
