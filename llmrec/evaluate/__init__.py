"""Full-ranking evaluation: metrics, baselines and the report, the same for every system.

`from llmrec.evaluate import evaluate_systems` loads only numpy and polars; baselines load scipy.
"""

from llmrec.evaluate.config import EvaluateConfig
from llmrec.evaluate.metrics import ranks_from_lists, ranks_from_scores
from llmrec.evaluate.protocol import (
    Metrics,
    System,
    evaluate_systems,
    per_user_table,
    select_cases,
    warm_cold_slices,
)

__all__ = [
    "EvaluateConfig",
    "Metrics",
    "System",
    "evaluate_systems",
    "per_user_table",
    "ranks_from_lists",
    "ranks_from_scores",
    "select_cases",
    "warm_cold_slices",
]
