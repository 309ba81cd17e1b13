"""What the `evaluate` section of a configuration may say."""

from dataclasses import dataclass, field
from typing import Literal

from llmrec.checks import check_fields
from llmrec.collaborative.config import NETWORKS, BSARecConfig, HSTUConfig, LISAConfig, RPGConfig, SASRecConfig
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
    "hstu",
    "lisa",
    "rpg",
    "sasrec-knn",
    "cornac-sasrec",
    "cornac-tiger",
]
TRAINED_BASELINES: set[Baseline] = {
    *("sasrec", "bsarec", "hstu", "lisa", "rpg"),
    *("sasrec-knn", "cornac-sasrec", "cornac-tiger"),
}
"""Baselines that a seed changes."""
READS_TEXT: set[Baseline] = {"text-knn", "smoothed-markov", "sasrec-knn", "cornac-tiger"}


@dataclass
class EvaluateConfig:
    """How systems are measured: every system ranks the whole catalogue for the same users."""

    k: list[int] = field(default_factory=lambda: [1, 5, 10, 20])
    """Cut-offs of recall, NDCG and MRR, in items; must include 10, which the intervals stand beside."""

    part: Literal["valid", "test"] = "test"
    """Part of the log that holds the targets: the first event of each user in it, or with every_event all of them."""

    every_event: bool = False
    """Take every event of the part as a target; the history is then all earlier events of its user. If false, only the
    first event of each user is a target, after the events of the earlier parts. Intervals always resample users."""

    filter_seen: bool = True
    """Leave the items of a user's history out of the ranking (a repeated target stays in)."""

    baselines: list[Baseline] = field(default_factory=lambda: ["popularity", "markov", "item-knn"])
    """Baselines, which are fitted on the training part and measured beside llmrec. decayed-markov: transitions over
    five steps; smoothed-markov: the same between text neighbours; ease: a linear item-to-item model (arXiv 1905.03375);
    text-knn: items with texts like those of the history; sasrec: a Transformer over items (arXiv 1808.09781), trained
    here in minutes for 100,000 events on a CPU; bsarec: SASRec with a frequency filter (arXiv 2312.10325); hstu:
    attention with a gate and no softmax (arXiv 2402.17152), which gets no times of events; lisa: attention over codes
    in linear time (arXiv 2105.14068), for very long histories; rpg: a Transformer that predicts the codes of an item's
    text in parallel (arXiv 2506.05781), and ranks cold items too; sasrec-knn: the ranking of SASRec with a quota of
    cold items from text-knn; cornac-sasrec, cornac-tiger: SASRec and TIGER (arXiv 2305.05065) of
    the package Cornac (the extra `benchmark`), TIGER for a GPU."""

    quotas: list[float] = field(default_factory=lambda: [0.1, 0.3])
    """Shares of cold items in every prefix of the rankings of sasrec-knn; each share is a system of its own."""

    sasrec: SASRecConfig = field(default_factory=SASRecConfig)
    """The Transformer of the baselines sasrec and sasrec-knn; cornac-sasrec takes its sizes and its epochs."""

    bsarec: BSARecConfig = field(default_factory=BSARecConfig)
    """The Transformer of the baseline bsarec."""

    hstu: HSTUConfig = field(default_factory=HSTUConfig)
    """The network of the baseline hstu."""

    lisa: LISAConfig = field(default_factory=LISAConfig)
    """The network of the baseline lisa."""

    rpg: RPGConfig = field(default_factory=RPGConfig)
    """The network of the baseline rpg."""

    rankings: list[RankingName] = field(default_factory=list)
    """Further rankings of the same model (see --decode.ranking), each a system beside llmrec."""

    frontier: bool = False
    """Measure recall@10 of warm and of cold targets for different bonuses of cold items in the fusion, and draw the
    curve. The bundle must be calibrated."""

    diagnose: int = 0
    """Number of warm targets, and of cold targets, for which the diagnosis finds the level at which the beam search
    loses them; drawn by the seed. 0: no diagnosis."""

    max_users: int = 0
    """Number of users to measure on, drawn by the seed; 0: all."""

    text_queries: int = 1000
    """Largest number of held-out intentions that are asked as requests in plain words, drawn by the seed; 0: none. Only
    a run with --intentions.source has intentions."""

    bootstrap: int = 1000
    """Number of resamples of the users, or of the queries, for each 95% interval."""

    seed: int = 0
    """Seed of the samples of users and queries, of the random ranking, the trained baselines and the bootstrap."""

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
        """Whether one of the baselines goes by the items' text vectors, or starts from them."""
        networks: set[str] = {name for name in (*NETWORKS, "lisa") if getattr(self, name).reads_text}
        networks |= {"sasrec-knn"} if "sasrec" in networks else set()
        return not (READS_TEXT | networks).isdisjoint(self.baselines)
