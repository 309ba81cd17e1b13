"""Models of Cornac (Salah et al., JMLR 2020), a package by other authors, as opponents in the benchmark.

Cornac builds and trains the model; llmrec gives it the training sequences and ranks by its scores. As in Cornac's own
evaluation, a model knows the items with training events only. Needs the extra `benchmark`.
"""

from abc import abstractmethod
from collections import OrderedDict
from typing import Any

import numpy as np

from llmrec.collaborative.config import SASRecConfig
from llmrec.collaborative.network import TrainedBaseline
from llmrec.console import get_logger
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError

log = get_logger(__name__)


NOT_FOUND = -1e10
"""The score that Cornac's TIGER gives to an item that its beam search does not return."""


class CornacSystem(TrainedBaseline):
    """A next-item model of Cornac.

    Args:
        validation: validation cases to choose the best epoch by; only those with a warm target are used.
        seed: of Cornac's model, and of the sample of `validation`.

    Raises:
        UserError: Cornac is not installed.
    """

    def __init__(self, validation: EvalExamples, seed: int = 0) -> None:
        super().__init__(validation, seed)
        try:
            import cornac  # noqa: F401
        except ImportError:
            raise UserError(f"--{self.named_by} {self.name} needs cornac: pip install 'llmrec[benchmark]'.") from None

    def _train(self, sequences: list[np.ndarray], stop_by: EvalExamples) -> None:
        self.model = self._make_model()
        pairs = zip(self._known(stop_by.histories), self.places[stop_by.targets], strict=True)
        sessions = [np.append(history, target) for history, target in pairs]
        train_set = self._dataset(sequences)
        self._add_features(train_set)
        log.info("%s: %d epochs", self.name, self.model.n_epochs)
        self.model.fit(train_set, self._dataset(sessions))

    def _dataset(self, sequences: list[np.ndarray]) -> Any:
        """The sequences as Cornac's sessions, each item under the number that it has here."""
        from cornac.data import SequentialDataset

        events = [(row, item, step) for row, items in enumerate(sequences) for step, item in enumerate(items.tolist())]
        # Without this map, Cornac would number the items by their first appearance.
        same = OrderedDict((item, item) for item in range(len(self.items)))
        return SequentialDataset.build(events, fmt="SIT", global_iid_map=same, seed=self.seed)

    def _predict(self, histories: list[np.ndarray]) -> np.ndarray:
        # Cornac scores one history at a time; its sequential models make no use of the user, here 0.
        scores = np.stack([self.model.score(0, history) for history in histories])
        return np.where(scores > NOT_FOUND, scores, -np.inf).astype(np.float32)

    @abstractmethod
    def _make_model(self) -> Any:
        """Cornac's model, not yet fitted."""

    def _add_features(self, train_set: Any) -> None:
        """Add to Cornac's training set what the model reads beside sequences."""


class CornacSASRec(CornacSystem):
    """Cornac's SASRec (arXiv 1808.09781): cross-entropy among sampled items, one training example per prefix.

    Loss, samples, batches, learning rate and dropout are Cornac's defaults. Every fifth epoch is measured; the one with
    the best NDCG@10 of validation stays.

    Args:
        config: sizes and epochs; its other fields are not used.
        validation, seed: as in `CornacSystem`.
    """

    name = "cornac-sasrec"

    def __init__(self, config: SASRecConfig, validation: EvalExamples, seed: int = 0) -> None:
        super().__init__(validation, seed)
        self.config = config

    def _make_model(self) -> Any:
        from cornac.models import SASRec

        return SASRec(
            embedding_dim=self.config.hidden_size,
            num_blocks=self.config.layers,
            num_heads=self.config.heads,
            max_len=self.config.max_history,
            n_epochs=self.config.epochs,
            model_selection="best",
            val_metric="ndcg",
            val_k=10,
            device=self.device.type,
            seed=self.seed,
        )


class CornacTIGER(CornacSystem):
    """Cornac's TIGER (arXiv 2305.05065) with the best of the two recipes that Cornac has for it (arXiv 2412.08604).

    An RQ-VAE turns the text vectors into semantic IDs, and a T5 of six and six layers generates the next one. An item
    that the beam search does not return is not ranked.

    Args:
        vectors: of the N items' texts, float [N, D].
        depth: how many items each user gets, the largest cut-off.
        validation, seed: as in `CornacSystem`.
    """

    name = "cornac-tiger"

    def __init__(self, vectors: np.ndarray, depth: int, validation: EvalExamples, seed: int = 0) -> None:
        super().__init__(validation, seed)
        self.vectors = vectors
        self.depth = depth

    def _make_model(self) -> Any:
        from cornac.models import TIGER
        from cornac.models.tiger import PAISCHER_CONFIG

        # The beams of the recipe come on top, because items of the history are among those that it returns.
        beams = PAISCHER_CONFIG["n_beams"] + self.depth
        return TIGER(**PAISCHER_CONFIG | {"n_beams": beams, "device": self.device.type, "seed": self.seed})

    def _add_features(self, train_set: Any) -> None:
        from cornac.data import FeatureModality

        train_set.add_modalities(item_feature=FeatureModality(features=self.vectors[self.items]))
