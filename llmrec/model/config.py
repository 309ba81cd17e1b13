"""The language model to start from: section `base` of the configuration."""

from dataclasses import dataclass
from typing import Literal

from llmrec.errors import UserError

InitRows = Literal["gaussian", "mean", "text", "codebook"]


@dataclass
class BaseConfig:
    """The language model to start from."""

    model: str | None = None
    """Path or Hub id of any causal language model, such as Qwen/Qwen3-0.6B; default: make a small one."""
    trust_remote_code: bool = False
    """Run code that comes with the checkpoint; off unless you trust its author."""
    bits: Literal[32, 8, 4] = 32
    """Per weight of a frozen base under train.method lora; 8 and 4 need bitsandbytes (QLoRA, arXiv 2305.14314)."""
    token_prefix: str = ""
    """Put before the names of item tokens, <{prefix}a_12>, in case the tokenizer has such names."""
    architecture: Literal["qwen3", "llama"] = "qwen3"
    """Of a model made here."""
    hidden_size: int = 256
    """Width of a model made here."""
    layers: int = 4
    """Depth of a model made here."""
    heads: int = 4
    """Attention heads of a model made here; they share heads / 2 key-value heads."""
    vocabulary: int = 4096
    """Size of the byte-level BPE tokenizer trained on the catalogue's text, for a model made here."""
    context: int = 512
    """Longest sequence, in tokens, of a model made here."""
    pretrain_epochs: int = 0
    """Passes over the catalogue's text before fine-tuning, for a model made here."""
    init_rows: InitRows = "gaussian"
    """Start of the new token rows: gaussian (drawn like the old ones), mean (of the old ones), text (mean of the words
    of the items under the code) or codebook (the quantizer's vectors, projected; gaussian for codes that stand for
    nothing, of a dedup level or random)."""
    seed: int = 0
    """Of the weights of a model made here and of the new token rows of any model."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "layers", "heads", "vocabulary", "context"):
            if getattr(self, name) < 1:
                raise UserError(f"--base.{name} {getattr(self, name)}: expected at least 1.")
        if self.hidden_size % (2 * self.heads) or self.heads % 2:
            raise UserError(
                f"--base.hidden_size {self.hidden_size} and --base.heads {self.heads}: the heads must be even and "
                "the width a multiple of twice their number."
            )
