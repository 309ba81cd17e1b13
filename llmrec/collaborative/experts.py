"""Experts: what a log and the texts of its items teach without a language model.

Each expert gives every item a value after a history. Values of counts enter as log(x + 10^-3): raw ones fuse worse.
"""

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
from sklearn.preprocessing import normalize

from llmrec.collaborative.base import TEXT_DIRECTION, BaselineSystem, recent
from llmrec.collaborative.bsarec import BSARec
from llmrec.collaborative.config import BY_TEXT, ExpertName, ExpertsConfig
from llmrec.collaborative.counting import DecayedMarkov, ItemKNN, SmoothedMarkov, centred
from llmrec.collaborative.hstu import HSTU
from llmrec.collaborative.network import TrainedNetwork
from llmrec.collaborative.rpg import RPG, FitOPQ
from llmrec.collaborative.sasrec import SASRec
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError

TRAINED: dict[str, type[TrainedNetwork]] = {"sasrec": SASRec, "bsarec": BSARec, "hstu": HSTU, "rpg": RPG}
"""Experts that are Transformers, trained here; each has a section of its name in the configuration."""
FLOOR = 1e-3
"""Added to values before their logarithm."""


class TextExpert(BaselineSystem):
    """Cosine of centred text vectors with those of the history, where recent items weigh more.

    Args:
        vectors: of the N items' texts, float [N, D].
        last: with the last item of the history alone.
    """

    def __init__(self, vectors: np.ndarray, last: bool) -> None:
        self.name = "last-text" if last else "text"
        self.vectors = vectors
        self.last = last

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        self.unit = centred(self.vectors, np.flatnonzero(self.popularity))

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        if self.last:
            return np.asarray(self.unit[[history[-1] for history in histories]] @ self.unit.T)
        return np.asarray(normalize(recent(histories, TEXT_DIRECTION, len(self.unit)) @ self.unit) @ self.unit.T)

    def restore(self, arrays: Mapping[str, np.ndarray], counts: np.ndarray, unit: np.ndarray | None) -> None:
        super().restore(arrays, counts, unit)
        assert unit is not None, f"{self.name} goes by text vectors"
        self.unit = unit

    def with_cold_items(self, n_items: int, unit: np.ndarray | None) -> Self:
        assert unit is not None, f"{self.name} goes by text vectors"
        return super().with_cold_items(n_items, unit).with_texts(unit)

    def with_texts(self, unit: np.ndarray) -> Self:
        changed = super().with_texts(unit)
        changed.unit = unit
        return changed


class Experts:
    """Fitted experts, which give each item of a catalogue one value per expert.

    Items that come later are cold: experts that go by text know them at once. Items that go are no longer listed; what
    the experts learnt of them stays, so that no value of another item changes.

    Args:
        config: which experts, and their settings.
        vectors: of the N items' texts, float [N, D].
        validation: examples that trained experts stop by.
        fit_opq: what quantizes the texts for the expert rpg, `llmrec.quantize.classical.product.fit_opq`.
    """

    def __init__(
        self,
        config: ExpertsConfig,
        vectors: np.ndarray | None,
        validation: EvalExamples,
        fit_opq: FitOPQ | None = None,
    ) -> None:
        self.names: list[ExpertName] = list(config.models)
        self.vectors = vectors
        self.systems: dict[ExpertName, BaselineSystem] = {
            name: _make(name, config, vectors, validation, fit_opq) for name in self.names if name != "popularity"
        }
        self.seconds: dict[str, float] = {}
        """How long each took to be fitted."""

    def fit(self, train_sequences: list[np.ndarray], n_items: int) -> "Experts":
        """Learn from U int arrays of catalogue rows, oldest first, some perhaps empty; returns itself."""
        for name, system in self.systems.items():
            started = time.perf_counter()
            system.fit(train_sequences, n_items)
            self.seconds[name] = round(time.perf_counter() - started, 3)
        self.counts = np.bincount(np.concatenate([np.empty(0, np.int64), *train_sequences]), minlength=n_items)
        self.rows = np.arange(n_items)
        return self

    def checkpoint_in(self, folder: Path) -> None:
        """Let each training write its checkpoint NAME.checkpoint into a folder, and go on from the one there."""
        for name, system in self.systems.items():
            if isinstance(system, TrainedNetwork):
                system.checkpoint = folder / f"{name}.checkpoint"

    @property
    def is_cold(self) -> np.ndarray:
        """bool [N]: items without training events."""
        return self.counts[self.rows] == 0

    def values(self, histories: list[np.ndarray]) -> np.ndarray:
        """What each expert says of each item after each of B histories, float32 [F, B, N].

        0 where it knows nothing: of cold items if it does not go by text, and of all items after an empty history.
        """
        values = np.zeros((len(self.names), len(histories), len(self.rows)), np.float32)
        asked = np.array([row for row, history in enumerate(histories) if len(history)], np.int64)
        if not len(asked):
            return values
        known, cold = [self.rows[histories[row]] for row in asked], np.flatnonzero(self.is_cold)
        all_rows = np.array_equal(self.rows, np.arange(len(self.counts)))  # then no value is copied
        for expert, name in enumerate(self.names):
            own = self._values(name, known)
            values[expert, asked] = own if all_rows else own[:, self.rows]
            if name not in BY_TEXT:
                values[expert][:, cold] = 0
        return values

    def _values(self, name: ExpertName, histories: list[np.ndarray]) -> np.ndarray:
        """Float32 [B, number of counts], or [1, ...] if the history does not matter."""
        if name == "popularity":
            return np.log(np.maximum(self.counts, 1)).astype(np.float32)[None]
        system = self.systems[name]
        if isinstance(system, DecayedMarkov):
            return np.log(system.expected(histories) + np.float32(FLOOR))
        if isinstance(system, TrainedNetwork):
            return system.values(histories)
        scores = system.scores(histories)
        return np.log(np.maximum(scores, 0) + FLOOR) if name == "item-knn" else scores

    def with_items(self, vectors: np.ndarray) -> "Experts":
        """The experts of a catalogue with M more items at its end, whose texts have the vectors float [M, D]."""
        grown = copy.copy(self)
        grown.vectors = None if self.vectors is None else np.concatenate([self.vectors, vectors])
        grown.counts = np.append(self.counts, np.zeros(len(vectors), np.int64))
        grown.rows = np.append(self.rows, np.arange(len(self.counts), len(grown.counts)))
        unit = grown._unit()
        grown.systems = {name: each.with_cold_items(len(grown.counts), unit) for name, each in self.systems.items()}
        return grown

    def with_texts(self, rows: np.ndarray, vectors: np.ndarray) -> "Experts":
        """The experts after the texts of the catalogue's `rows`, int [n], got the vectors float [n, D]."""
        if self.vectors is None:
            return self
        changed = copy.copy(self)
        changed.vectors = np.array(self.vectors, np.float32)
        changed.vectors[self.rows[rows]] = vectors
        unit = changed._unit()
        assert unit is not None
        changed.systems = {name: each.with_texts(unit) for name, each in self.systems.items()}
        return changed

    def of_rows(self, rows: np.ndarray) -> "Experts":
        """The experts of the catalogue's `rows`, int [M], in that order."""
        chosen = copy.copy(self)
        chosen.rows = self.rows[rows]
        return chosen

    def _unit(self) -> np.ndarray | None:
        """The text vectors as `centred` gives them."""
        return None if self.vectors is None else centred(self.vectors, np.flatnonzero(self.counts))

    def arrays(self) -> dict[str, np.ndarray]:
        """All that was learnt, by names in a safetensors file."""
        arrays = {"counts": self.counts, "rows": self.rows}
        if self.vectors is not None:
            arrays["vectors"] = np.asarray(self.vectors, np.float32)
        for name, system in self.systems.items():
            arrays |= {f"{name}.{part}": array for part, array in system.arrays().items()}
        return arrays

    @classmethod
    def restored(cls, config: ExpertsConfig, arrays: Mapping[str, np.ndarray]) -> "Experts":
        """The experts of which `arrays` made these arrays.

        Raises:
            KeyError, ValueError, RuntimeError: an array is missing, or has another shape or values out of range.
        """
        nobody = EvalExamples(np.empty(0, np.int32), [], np.empty(0, np.int32))  # nothing is trained here
        experts = cls(config, arrays.get("vectors"), nobody)
        experts.counts, experts.rows = arrays["counts"], arrays["rows"]
        n_items = len(experts.counts)
        if (experts.counts < 0).any() or not experts.counts.any():
            raise ValueError("expected counts of training events")
        if experts.rows.ndim != 1 or (experts.rows < 0).any() or (experts.rows >= n_items).any():
            raise ValueError(f"rows out of range for {n_items} items")
        if experts.vectors is not None and len(experts.vectors) != n_items:
            raise ValueError(f"{len(experts.vectors)} text vectors for {n_items} items")
        for array in arrays.values():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError("an array holds NaN or infinity")
        unit = experts._unit()
        for name, system in experts.systems.items():
            own = {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}
            system.restore(own, experts.counts, unit)
        return experts


def _make(
    name: ExpertName,
    config: ExpertsConfig,
    vectors: np.ndarray | None,
    validation: EvalExamples,
    fit_opq: FitOPQ | None,
) -> BaselineSystem:
    if name in BY_TEXT:
        if vectors is None:
            raise UserError(f"--experts.models {name}: needs the vectors of the items' texts.")
        if name == "smoothed-markov":
            return SmoothedMarkov(vectors, validation=validation)
        if name == "rpg":
            return RPG(config.rpg, validation, config.seed, vectors, fit_opq)
        return TextExpert(vectors, name == "last-text")
    if name in TRAINED:
        return TRAINED[name](getattr(config, name), validation, config.seed, vectors)
    return ItemKNN() if name == "item-knn" else DecayedMarkov(validation=validation)
