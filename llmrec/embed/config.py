"""The `embed` section of the configuration."""

from dataclasses import dataclass, field
from typing import Any, Literal

from llmrec.checks import check_fields

EncoderName = Literal["sentence-transformers", "minilm-offline", "tfidf-svd"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass
class AlignConfig:
    """Alignment of the item vectors with the item pairs of the training log, before the vectors are quantized."""

    epochs: int = 0
    """Passes over the item pairs; 0: no alignment."""
    min_count: int = 2
    """Two items are a pair if they occur close together in the training histories at least this many times."""
    neighbours: int = 10
    """Maximum number of pairs that an item keeps: its strongest ones."""
    batch_size: int = 512
    """Pairs per training step; the items of the other pairs in the step are the negatives."""
    temperature: float = 0.1
    """Temperature of the contrastive loss; a smaller value gives more weight to the hardest negatives."""
    learning_rate: float = 3e-3
    """Learning rate of the optimizer (Adam)."""
    seed: int = 0
    """Seed of the order of the pairs."""

    def __post_init__(self) -> None:
        at_least = {0: ("epochs", "seed"), 1: ("min_count", "neighbours"), 2: ("batch_size",)}
        check_fields(self, "embed.align", at_least=at_least, positive=("temperature", "learning_rate"))


@dataclass
class EmbedConfig:
    """How items become vectors."""

    encoder: EncoderName = "sentence-transformers"
    """A sentence-transformers model, the MiniLM of the `offline` extra, or TF-IDF + SVD (no pretrained weights)."""
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Folder or Hub id of the model (encoder sentence-transformers only)."""
    template: str = ""
    """Text of an item, e.g. "{title}. {brand}"; empty: the title, then all other fields in their order."""
    dim: int = 128
    """Dimensions of the vectors (encoder tfidf-svd only)."""
    batch_size: int = 128
    """Texts per forward pass."""
    max_tokens: int | None = None
    """Maximum number of tokens of a text, the rest is cut off; unset: the model's own limit."""
    dtype: Precision = "auto"
    """Data type in which the model computes; auto: bfloat16 on a GPU or a CPU with AMX, else float32."""
    normalize: bool = True
    """Scale every vector to length 1."""
    cache: str | None = None
    """Folder that caches the vectors by content hash; unset: $LLMREC_CACHE or ~/.cache/llmrec/embeddings."""
    align: AlignConfig = field(default_factory=AlignConfig)
    """Alignment of the vectors with the users' behaviour."""

    def __post_init__(self) -> None:
        check_fields(self, "embed", at_least={1: ("dim", "batch_size", "max_tokens")})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EmbedConfig":
        """The config from a dictionary, the inverse of `dataclasses.asdict`.

        Args:
            values: field name -> value; fields that are missing keep their defaults.

        Raises:
            UserError: a value is out of range.
        """
        values = dict(values)
        align = AlignConfig(**values.pop("align", {}))
        return cls(**values, align=align)
