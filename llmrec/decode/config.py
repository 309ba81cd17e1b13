"""How answers are decoded."""

from dataclasses import dataclass
from typing import Literal

from llmrec.errors import UserError


@dataclass
class DecodeConfig:
    """Trie-constrained beam search."""

    beams: int = 20
    """Beams per request (K). At least the number of answers asked for."""
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
