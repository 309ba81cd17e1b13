"""The baselines of a configuration, fitted."""

import numpy as np

from llmrec.data.split import Cases
from llmrec.errors import UserError
from llmrec.evaluate.baselines import BaselineSystem, ItemKNN, Markov, Popularity
from llmrec.evaluate.config import EvaluateConfig
from llmrec.evaluate.protocol import System
from llmrec.evaluate.sasrec import SASRec
from llmrec.evaluate.sasrec_knn import SASRecKNN
from llmrec.evaluate.text_knn import TextKNN

COUNTING: dict[str, type[BaselineSystem]] = {"popularity": Popularity, "markov": Markov, "item-knn": ItemKNN}


def fit_baselines(
    config: EvaluateConfig,
    train_sequences: list[np.ndarray],
    n_items: int,
    validation: Cases,
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


def _make(name: str, config: EvaluateConfig, validation: Cases, vectors: np.ndarray | None) -> BaselineSystem:
    if name == "sasrec":
        return SASRec(config.sasrec, validation, config.seed)
    if name == "text-knn":
        if vectors is None:
            raise UserError(
                f"--evaluate.baselines {' '.join(config.baselines)}: text-knn and sasrec-knn need text_vectors, the "
                "vectors of the items' texts"
            )
        return TextKNN(vectors)
    return COUNTING[name]()
