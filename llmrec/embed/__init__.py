"""Items -> vectors [N, D]."""

from llmrec.embed.collaborative import collaborative_vectors
from llmrec.embed.config import AlignConfig, EmbedConfig
from llmrec.embed.embeddings import Embeddings, embed, item_texts
from llmrec.embed.encoder import Encoder
from llmrec.embed.methods import make_encoder

__all__ = [
    "AlignConfig",
    "EmbedConfig",
    "Embeddings",
    "Encoder",
    "collaborative_vectors",
    "embed",
    "item_texts",
    "make_encoder",
]
