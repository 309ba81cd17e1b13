"""Full-ranking evaluation: metrics, baselines and the report, the same for every system.

`from llmrec.evaluation import evaluate_systems` loads numpy, polars and scipy, and no torch.
"""

from llmrec.collaborative.base import ranks_from_scores
from llmrec.evaluation.config import EvaluateConfig
from llmrec.evaluation.metrics import ranks_from_lists
from llmrec.evaluation.protocol import (
    Metrics,
    evaluate_systems,
    make_slices,
    select_cases,
    warm_cold_slices,
)

__all__ = [
    "EvaluateConfig",
    "Metrics",
    "evaluate_systems",
    "make_slices",
    "ranks_from_lists",
    "ranks_from_scores",
    "select_cases",
    "warm_cold_slices",
]
