"""What the `evaluate` section of a configuration may say."""

from dataclasses import dataclass, field
from typing import Literal

from llmrec.errors import UserError

Baseline = Literal["popularity", "markov", "item-knn"]


@dataclass
class EvaluateConfig:
    """How systems are measured: every system ranks the whole catalogue for the same users."""

    k: list[int] = field(default_factory=lambda: [1, 5, 10, 20])
    """Cut-offs of recall, NDCG and MRR, in items; must include 10, which the intervals stand beside."""

    part: Literal["valid", "test"] = "test"
    """Part of the log whose first event per user is the target."""

    filter_seen: bool = True
    """Leave the items of a user's history out of the ranking (a repeated target stays in)."""

    baselines: list[Baseline] = field(default_factory=lambda: ["popularity", "markov", "item-knn"])
    """Baselines fitted on the training part and measured beside llmrec."""

    max_users: int = 0
    """Measure on this many users, drawn by the seed; 0 takes all."""

    text_queries: int = 1000
    """Held-out intentions asked in plain words, at most so many, drawn by the seed; 0 leaves them out. Only a run with
    --intentions.source has any."""

    bootstrap: int = 1000
    """Resamples of the users, or queries, behind each 95% interval."""

    seed: int = 0
    """Seed of the samples of users and queries, and of the bootstrap."""

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1 or len(set(self.k)) < len(self.k) or 10 not in self.k:
            raise UserError(f"--evaluate.k: got {self.k}, expected distinct cut-offs of at least 1, 10 among them")
        if len(set(self.baselines)) < len(self.baselines):
            raise UserError(f"--evaluate.baselines: got {self.baselines}, expected each baseline at most once")
        if self.max_users < 0:
            raise UserError(f"--evaluate.max_users: got {self.max_users}, expected 0 (all) or a number of users")
        if self.text_queries < 0:
            raise UserError(f"--evaluate.text_queries: got {self.text_queries}, expected 0 (none) or a number of them")
        if self.bootstrap < 1:
            raise UserError(f"--evaluate.bootstrap: got {self.bootstrap}, expected at least 1 resample")
