"""The configuration of decoding: how the search finds and ranks items."""

import math
from dataclasses import dataclass
from typing import Literal

from llmrec.checks import check_fields
from llmrec.errors import UserError

Scoring = Literal["auto", "vocab", "level", "catalogue"]
Constraint = Literal["trie", "level", "none"]
RankingName = Literal[
    "beam", "quota", "dense", "liger", "cascade", "specgr", "fusion", "experts", "session", "behaviour", "streams"
]
WITHOUT_HEAD: tuple[RankingName, ...] = ("beam", "quota", "experts", "session", "behaviour", "streams")
"""Rankings that need no dense head."""
NEED_TREE: tuple[RankingName, ...] = ("cascade", "specgr", "fusion")
"""Rankings that score given codes, for which the model must take a tree attention mask."""
TWO_STREAMS: tuple[RankingName, ...] = ("behaviour", "streams")
"""Rankings that need the items' codes of behaviour."""


@dataclass
class DecodeConfig:
    """Beam search over the catalogue and the ranking of its results."""

    beams: int = 20
    """Beams per request (K). The search uses k beams if a request asks for k > K results."""
    scoring: Scoring = "auto"
    """The softmax that gives a code's probability. vocab: over the whole vocabulary, as in `generate`. level: over the
    level's codes. catalogue: over the codes that continue the prefix to an item, so the probabilities sum to 1 over the
    catalogue (over its warm items, if it has cold ones). auto: vocab with --decode.constraint none or level and for
    models that do not support a tree attention mask, else catalogue, which is faster than vocab, as accurate on Beauty
    and more accurate on the made-up shop."""
    constraint: Constraint = "trie"
    """The tokens that a beam may continue with. trie: codes that lead to an item. level: all codes of the level. none:
    all tokens. Use level and none only to measure the effect of the constraint; results that are not items are
    dropped."""
    ranking: Literal["auto", RankingName] = "auto"
    """How items are ranked. beam: by beam search alone. quota (TIGER): a share of each list is for cold items that
    share their first codes with a beam. dense: by the dense head alone. liger: the dense head ranks the items of the
    beams and all cold items. cascade (COBRA): beams choose first codes, the dense head ranks the items below them.
    specgr: the dense head proposes items, the model accepts those with likely codes, and beams fill up the list.
    fusion: the weighted sum of the scores of the model, the dense head and the items' texts, with calibrated weights;
    for requests in words, if it has been calibrated for them, of the model, the dense head, BM25 and the encoder.
    experts: by the experts of --experts.models alone, which do not wait for the model; requests in words as by fusion
    or, without its weights for them, by beam search. session (OneRec): the list's first items are generated one after
    the other, each given those before it. streams (EAGER): by beam search in the codes of the texts and in those of
    behaviour; each item has the better of its two log-probabilities. behaviour: in the codes of behaviour alone, which
    cold items do not have. auto: if the bundle has been calibrated, the one of fusion, experts, dense, streams and beam
    with the best NDCG@10 on validation, and fusion unless that is better by more than a standard error; else streams,
    where there are two, or beam. A cold item has no training events. behaviour and streams need --tokenize.behaviour,
    all others but beam, quota, experts and session --train.dense.weight."""
    quota: float = 0.1
    """Ranking quota: share of a list that is for cold items, 0 to 1."""
    quota_prefix: int = 0
    """Ranking quota: number of first codes that a cold item must share with a beam. 0: all content levels, as in TIGER;
    a last level that only separates items with the same codes is not one."""
    specgr_threshold: float = -1.4
    """Ranking specgr: the model accepts a proposed item if its mean log-probability per code is above this."""
    session: int = 5
    """Ranking session: items that are generated one after the other; the others follow in the order of the beams."""
    session_lists: int = 4
    """Ranking session: lists that the search keeps. 1: each item is the most likely one after those before it. The
    model reads at most this many prompts per request and item."""
    warm_floor: float = 1.0
    """Ranking fusion, used by calibration: least recall@10 of warm targets on validation examples, as a multiple of
    that of the beams alone. If the dense head alone then has a higher NDCG@10 than the fusion, its recall@10 counts
    instead."""
    cold_bonus: float = 0.0
    """Ranking fusion: added to the score of cold items, on top of the calibrated bonus. A larger value puts more cold
    items into the lists, a negative one fewer."""
    batch_size: int = 32
    """Number of requests decoded together."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the computation. auto: bfloat16 where the hardware multiplies it faster, else float32."""
    device: str = "auto"
    """Device of the model: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        at_least = {0: ("quota", "quota_prefix", "warm_floor"), 1: ("beams", "batch_size", "session", "session_lists")}
        check_fields(self, "decode", at_least=at_least)
        if not math.isfinite(self.cold_bonus):
            raise UserError(f"--decode.cold_bonus {self.cold_bonus}: expected a finite number.")
        if self.quota > 1:
            raise UserError(f"--decode.quota {self.quota}: expected a share from 0 to 1.")
        if self.constraint != "trie" and self.ranking not in ("auto", "beam"):
            raise UserError(
                f"--decode.ranking {self.ranking} ranks items, and --decode.constraint {self.constraint} spells others "
                "too: use --decode.ranking beam, or --decode.constraint trie."
            )
        if self.constraint != "trie" and self.scoring == "catalogue":
            raise UserError(
                f"--decode.scoring catalogue is a softmax over items, which --decode.constraint {self.constraint} "
                "does not know; choose --decode.scoring vocab or level."
            )
        if self.constraint == "none" and self.scoring == "level":
            raise UserError(
                "--decode.scoring level knows the level's codes only; --decode.constraint none needs "
                "--decode.scoring vocab."
            )
