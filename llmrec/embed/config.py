"""The `embed` section of the configuration."""

from dataclasses import dataclass
from typing import Literal

from llmrec.errors import UserError

EncoderName = Literal["sentence-transformers", "minilm-offline", "tfidf-svd"]
Precision = Literal["auto", "float32", "bfloat16"]


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

    def __post_init__(self) -> None:
        for name in ("dim", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--embed.{name} is {getattr(self, name)}; give 1 or more")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"--embed.max_tokens is {self.max_tokens}; give 1 or more, or leave it unset")
