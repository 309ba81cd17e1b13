"""Full-ranking evaluation: metrics, baselines and the report, the same for every system.

`from llmrec.evaluate import evaluate_systems` loads only numpy and polars; baselines load scipy.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from llmrec.collaborative.base import ranks_from_scores
from llmrec.evaluation.config import EvaluateConfig
from llmrec.evaluation.metrics import ranks_from_lists
from llmrec.evaluation.protocol import (
    Metrics,
    System,
    evaluate_systems,
    make_slices,
    per_user_table,
    select_cases,
    warm_cold_slices,
)

if TYPE_CHECKING:
    import numpy as np

    from llmrec.data import Split
    from llmrec.evaluation.generative import Evaluation, HasRanker

__all__ = [
    "EvaluateConfig",
    "Metrics",
    "System",
    "evaluate_systems",
    "make_slices",
    "per_user_table",
    "ranks_from_lists",
    "ranks_from_scores",
    "select_cases",
    "warm_cold_slices",
]


class _Callable(ModuleType):
    """Makes `from llmrec import evaluate; evaluate(recommender, split)` work: room and function share a name."""

    def __call__(
        self,
        recommender: "HasRanker",
        split: "Split",
        config: EvaluateConfig | None = None,
        text_vectors: "np.ndarray | None" = None,
    ) -> "Evaluation":
        from llmrec.evaluation.generative import evaluate

        return evaluate(recommender, split, config, text_vectors)


sys.modules[__name__].__class__ = _Callable
