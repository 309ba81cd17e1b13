"""How answers are decoded."""

import math
from dataclasses import dataclass
from typing import Literal

from llmrec.checks import check_fields
from llmrec.errors import UserError

Scoring = Literal["auto", "vocab", "level", "catalogue"]
Constraint = Literal["trie", "level", "none"]
RankingName = Literal["beam", "quota", "dense", "liger", "cascade", "specgr", "fusion"]
WITHOUT_HEAD: tuple[RankingName, ...] = ("beam", "quota")
"""Rankings that need no dense head."""


@dataclass
class DecodeConfig:
    """Beam search over the catalogue."""

    beams: int = 20
    """Beams per request (K); widened to the number of answers where more are asked for."""
    scoring: Scoring = "auto"
    """A code's probability: among the whole vocabulary (vocab, as `generate` has it), among the level's codes
    (level), or among the codes that continue the prefix to an item (catalogue: sums to 1 over the catalogue);
    auto is catalogue, as accurate as vocab on Beauty and more so on the made-up shop, and faster; or vocab where items
    are not all there is (--decode.constraint none, level) and for models that take no tree attention mask."""
    constraint: Constraint = "trie"
    """What beams may spell: items only (trie), any code of the level (level), anything (none); the latter two are for
    measuring what the constraint is worth, and their invalid answers are dropped."""
    ranking: Literal["auto", RankingName] = "auto"
    """How items are ranked: by the beams alone (beam); with a share of each list for new items that begin as a beam
    does (quota, TIGER); by the dense head alone (dense); beams and all new items by the dense head (liger); beams over
    first codes, dense inside (cascade, COBRA); drafts of the dense head that the model verifies (specgr); all of these
    and the items' texts with calibrated weights (fusion). auto is fusion where the bundle has been calibrated, else
    beam. A new item is one without training events. All but beam and quota need --train.dense.weight."""
    quota: float = 0.1
    """Ranking quota: share of a list that is for new items."""
    quota_prefix: int = 0
    """Ranking quota: codes that a new item must share with a beam; 0: all that tell content, as TIGER has it."""
    specgr_threshold: float = -1.4
    """Ranking specgr: least mean log-probability per code of an accepted draft."""
    warm_floor: float = 1.0
    """Ranking fusion, when it is calibrated: items with training events keep a recall@10 of so many times that of the
    beams alone, measured on validation cases."""
    cold_bonus: float = 0.0
    """Ranking fusion: added to the score of new items, beyond what was calibrated: more of them, or fewer."""
    batch_size: int = 32
    """Requests decoded together."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic: auto is bfloat16 on a GPU or a CPU with bfloat16 matrix units, else float32."""
    device: str = "auto"
    """Where the model runs: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        at_least = {0: ("quota", "quota_prefix", "warm_floor"), 1: ("beams", "batch_size")}
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
