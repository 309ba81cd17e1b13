"""Embed the N items of a catalogue: float32 vectors [N, D]."""

from llmrec.collaborative.behaviour import collaborative_vectors
from llmrec.embed.config import AlignConfig, EmbedConfig
from llmrec.embed.embeddings import Embeddings, embed, make_encoder
from llmrec.embed.encoder import Encoder, item_texts
from llmrec.embed.given import GivenVectors, as_vectors, read_vectors, vector_files

__all__ = [
    "AlignConfig",
    "EmbedConfig",
    "Embeddings",
    "Encoder",
    "GivenVectors",
    "as_vectors",
    "collaborative_vectors",
    "embed",
    "item_texts",
    "make_encoder",
    "read_vectors",
    "vector_files",
]
