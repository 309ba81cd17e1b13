"""How answers are decoded."""

from dataclasses import dataclass
from typing import Literal

from llmrec.errors import UserError

Scoring = Literal["auto", "vocab", "level", "catalogue"]
Constraint = Literal["trie", "level", "none"]


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
    batch_size: int = 32
    """Requests decoded together."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic: auto is bfloat16 on a GPU or a CPU with bfloat16 matrix units, else float32."""
    device: str = "auto"
    """Where the model runs: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        for name in ("beams", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--decode.{name} {getattr(self, name)}: expected at least 1.")
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
