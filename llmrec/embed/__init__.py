"""Embed the N items of a catalogue: float32 vectors [N, D]."""

from llmrec.collaborative.behaviour import collaborative_vectors
from llmrec.embed.embeddings import Embeddings, embed, item_texts, make_encoder
from llmrec.embed.encoder import AlignConfig, EmbedConfig, Encoder

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
