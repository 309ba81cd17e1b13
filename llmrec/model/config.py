"""The language model to start from: section `base` of the configuration."""

from dataclasses import dataclass
from typing import Literal

from llmrec.checks import check_fields
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
        sizes = ("hidden_size", "layers", "heads", "vocabulary", "context")
        check_fields(self, "base", at_least={0: ("pretrain_epochs", "seed"), 1: sizes})
        if self.hidden_size % (2 * self.heads) or self.heads % 2:
            raise UserError(
                f"--base.hidden_size {self.hidden_size} and --base.heads {self.heads}: the heads must be even and "
                "the width a multiple of twice their number."
            )


@dataclass
class AdapterConfig:
    """The LoRA adapter (arXiv 2106.09685) that --train.method lora trains."""

    rank: int = 16
    """Rank of the adapter's matrices."""
    alpha: int = 32
    """Scale: the adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.05
    """Share of the adapter's inputs that training drops."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Layers that get an adapter: names such as [q_proj, v_proj], or all linear layers but the output head."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead of alpha / rank (rsLoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Learn the weights' magnitudes apart from their directions (DoRA, arXiv 2402.09353)."""
    merge: bool = True
    """Write one merged model into the bundle (true), or the adapter, which needs its base (false)."""

    def __post_init__(self) -> None:
        check_fields(self, "train.lora", at_least={1: ("rank",)}, shares=("dropout",))


@dataclass
class DenseConfig:
    """The dense head: it puts the model's hidden state and the items' text vectors into one space."""

    weight: float = 0.0
    """Weight of the head's cosine loss beside the loss of the codes (LIGER, arXiv 2411.18814, uses 1). The head also
    ranks items without training events. 0: no head."""
    dim: int = 128
    """Dimensions of the head's space."""

    def __post_init__(self) -> None:
        check_fields(self, "train.dense", at_least={0: ("weight",), 1: ("dim",)})
