"""Items -> vectors [N, D]."""

from llmrec.embed.config import EmbedConfig
from llmrec.embed.embeddings import Embeddings, embed, item_texts
from llmrec.embed.encoder import Encoder, make_encoder

__all__ = ["EmbedConfig", "Embeddings", "Encoder", "embed", "item_texts", "make_encoder"]
