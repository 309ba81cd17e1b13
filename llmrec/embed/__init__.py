"""Embed the N items of a catalogue: float32 vectors [N, D]."""

from llmrec.collaborative.behaviour import collaborative_vectors
from llmrec.embed.config import AlignConfig, EmbedConfig
from llmrec.embed.embeddings import Embeddings, embed, make_encoder
from llmrec.embed.encoder import Encoder, item_texts
from llmrec.embed.given import GivenVectors, read_vectors, require_finite, vector_files

__all__ = [
    "AlignConfig",
    "EmbedConfig",
    "Embeddings",
    "Encoder",
    "GivenVectors",
    "collaborative_vectors",
    "embed",
    "item_texts",
    "make_encoder",
    "read_vectors",
    "require_finite",
    "vector_files",
]
