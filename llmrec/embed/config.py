"""The `embed` section of the configuration."""

from dataclasses import dataclass, field
from typing import Any, Literal

from llmrec.checks import check_fields

EncoderName = Literal["sentence-transformers", "minilm-offline", "tfidf-svd"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass
class AlignConfig:
    """Alignment of the vectors with item pairs of the training log, before they are quantized."""

    epochs: int = 0
    """Passes over the item pairs; 0: no alignment."""
    min_count: int = 2
    """Times that two items stand close together in the users' training sequences to make a pair."""
    neighbours: int = 10
    """Pairs that an item proposes at most, its strongest."""
    batch_size: int = 512
    """Pairs per step; the other pairs of a step are the negatives."""
    temperature: float = 0.1
    """Temperature of the contrast; smaller values look at the hardest negatives only."""
    learning_rate: float = 3e-3
    """Step size of the optimizer."""
    seed: int = 0
    """Seed of the pairs' order."""

    def __post_init__(self) -> None:
        at_least = {0: ("epochs", "seed"), 1: ("min_count", "neighbours"), 2: ("batch_size",)}
        check_fields(self, "embed.align", at_least=at_least, positive=("temperature", "learning_rate"))


@dataclass
class EmbedConfig:
    """How items become vectors."""

    encoder: EncoderName = "sentence-transformers"
    """A sentence-transformers model, the MiniLM of the `offline` extra, or TF-IDF + SVD (no weights)."""
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Folder or Hub id of the sentence-transformers model (encoder sentence-transformers only)."""
    template: str = ""
    """Text of an item, e.g. "{title}. {brand}"; empty: the title, then all other fields in their order."""
    dim: int = 128
    """Dimensions of the vectors (encoder tfidf-svd only)."""
    batch_size: int = 128
    """Texts per forward pass."""
    max_tokens: int | None = None
    """Tokens after which a text is cut; unset: the model's own limit."""
    dtype: Precision = "auto"
    """Arithmetic of the model; auto: bfloat16 on a GPU or a CPU with AMX, else float32."""
    normalize: bool = True
    """Scale every vector to length 1."""
    cache: str | None = None
    """Folder of vectors kept by content hash; unset: $LLMREC_CACHE or ~/.cache/llmrec/embeddings."""
    align: AlignConfig = field(default_factory=AlignConfig)
    """Alignment with behaviour."""

    def __post_init__(self) -> None:
        check_fields(self, "embed", at_least={1: ("dim", "batch_size", "max_tokens")})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EmbedConfig":
        """The config that `dataclasses.asdict` turned into `values`, or a part of one.

        Raises:
            UserError: values out of range.
        """
        values = dict(values)
        align = AlignConfig(**values.pop("align", {}))
        return cls(**values, align=align)
