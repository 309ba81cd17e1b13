"""What the `evaluate` section of a configuration may say."""

from dataclasses import dataclass, field
from typing import Literal

from llmrec.checks import check_fields
from llmrec.collaborative.base import BSARecConfig, SASRecConfig
from llmrec.decode.config import RankingName
from llmrec.errors import UserError

Baseline = Literal[
    "popularity",
    "markov",
    "item-knn",
    "decayed-markov",
    "smoothed-markov",
    "ease",
    "text-knn",
    "sasrec",
    "bsarec",
    "sasrec-knn",
]
READS_TEXT: set[Baseline] = {"text-knn", "smoothed-markov", "sasrec-knn"}


@dataclass
class EvaluateConfig:
    """How systems are measured: every system ranks the whole catalogue for the same users."""

    k: list[int] = field(default_factory=lambda: [1, 5, 10, 20])
    """Cut-offs of recall, NDCG and MRR, in items; must include 10, which the intervals stand beside."""

    part: Literal["valid", "test"] = "test"
    """Part of the log whose first event per user is the target, or every one with every_event."""

    every_event: bool = False
    """Every event of the part is a target, after all that its user did before it; else each user's first, after the
    earlier parts. Intervals resample users either way."""

    filter_seen: bool = True
    """Leave the items of a user's history out of the ranking (a repeated target stays in)."""

    baselines: list[Baseline] = field(default_factory=lambda: ["popularity", "markov", "item-knn"])
    """Baselines fitted on the training part and measured beside llmrec. decayed-markov: transitions over five steps;
    smoothed-markov: the same between text neighbours; ease: a linear item-to-item model (arXiv 1905.03375); text-knn:
    items whose texts are like the history's; sasrec: a Transformer over items (arXiv 1808.09781), trained here, minutes
    for 100,000 events on a CPU; bsarec: SASRec with a frequency filter (arXiv 2312.10325);
    sasrec-knn: SASRec's ranking with a quota of cold items by text-knn."""

    quotas: list[float] = field(default_factory=lambda: [0.1, 0.3])
    """Shares of cold items in every prefix of sasrec-knn's rankings; each makes a system of its own."""

    sasrec: SASRecConfig = field(default_factory=SASRecConfig)
    """The Transformer of sasrec and sasrec-knn."""

    bsarec: BSARecConfig = field(default_factory=BSARecConfig)
    """The Transformer of bsarec."""

    rankings: list[RankingName] = field(default_factory=list)
    """Further rankings of the same model (see --decode.ranking), each a system beside llmrec."""

    frontier: bool = False
    """Draw how recall@10 of warm and of cold targets trade as the fusion favours new items more or less; needs a bundle
    that has been calibrated."""

    diagnose: int = 0
    """Tell level by level where so many warm and so many cold targets get lost, drawn by the seed; 0: no diagnosis."""

    max_users: int = 0
    """Measure on this many users, drawn by the seed; 0 takes all."""

    text_queries: int = 1000
    """Held-out intentions asked in plain words, at most so many, drawn by the seed; 0 leaves them out. Only a run with
    --intentions.source has any."""

    bootstrap: int = 1000
    """Resamples of the users, or queries, behind each 95% interval."""

    seed: int = 0
    """Seed of the samples of users and queries, of the random ranking, of sasrec and of the bootstrap."""

    def __post_init__(self) -> None:
        at_least = {0: ("diagnose", "max_users", "text_queries", "seed"), 1: ("bootstrap",)}
        check_fields(self, "evaluate", at_least=at_least)
        if not self.k or min(self.k) < 1 or len(set(self.k)) < len(self.k) or 10 not in self.k:
            raise UserError(f"--evaluate.k {self.k}: expected distinct cut-offs of at least 1, 10 among them")
        if len(set(self.baselines)) < len(self.baselines):
            raise UserError(f"--evaluate.baselines {self.baselines}: expected each baseline at most once")
        shares = self.quotas
        if not shares or len(set(shares)) < len(shares) or not all(0 < share <= 1 for share in shares):
            raise UserError(f"--evaluate.quotas {shares}: expected distinct shares above 0 and up to 1")
        if len(set(self.rankings)) < len(self.rankings):
            raise UserError(f"--evaluate.rankings {self.rankings}: expected each ranking at most once")

    @property
    def reads_text(self) -> bool:
        """Whether one of the baselines goes by the items' text vectors."""
        return not READS_TEXT.isdisjoint(self.baselines)
