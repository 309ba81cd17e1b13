"""Which class stands behind each `--embed.encoder`; a new encoder adds its line here."""

from typing import assert_never

from llmrec.embed.align import AlignedEncoder
from llmrec.embed.config import EmbedConfig
from llmrec.embed.encoder import Encoder


def make_encoder(config: EmbedConfig) -> Encoder:
    """The encoder that `config` names, under an alignment head if it asks for one.

    Weights are loaded by its first `encode`.
    """
    encoder = _text_encoder(config)
    return AlignedEncoder(encoder) if config.align.epochs else encoder


def _text_encoder(config: EmbedConfig) -> Encoder:
    match config.encoder:
        case "sentence-transformers":
            from llmrec.embed.sentence import SentenceEncoder

            return SentenceEncoder(config)
        case "minilm-offline":
            from llmrec.embed.sentence import OfflineMiniLM

            return OfflineMiniLM(config)
        case "tfidf-svd":
            from llmrec.embed.tfidf import TfidfEncoder

            return TfidfEncoder(config)
        case _:
            assert_never(config.encoder)
