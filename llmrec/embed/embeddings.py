"""The vectors of a catalogue's items, and the function that makes them.

To add an encoder, add a case to `_text_encoder`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import assert_never

import numpy as np
import polars as pl
from safetensors.numpy import load_file, save_file

from llmrec.collaborative.behaviour import Behaviour
from llmrec.data.catalog import Catalog
from llmrec.data.interactions import Interactions
from llmrec.embed.align import AlignedEncoder
from llmrec.embed.config import TEXT, EmbedConfig
from llmrec.embed.encoder import Encoder, item_texts
from llmrec.embed.given import GivenVectors
from llmrec.errors import UserError


def make_encoder(config: EmbedConfig) -> Encoder:
    """The encoder that `config` names, wrapped in an `AlignedEncoder` if alignment is on, or in a `GivenVectors` if
    vectors come from files.

    The first call of `encode` loads the weights.
    """
    if config.sources:
        return GivenVectors(config, _text_encoder(config) if TEXT in config.sources else None)
    encoder = _text_encoder(config)
    return AlignedEncoder(encoder) if config.align.epochs else encoder


def _text_encoder(config: EmbedConfig) -> Encoder:
    match config.encoder:
        case "sentence-transformers":
            from llmrec.embed.encoder import SentenceEncoder

            return SentenceEncoder(config)
        case "minilm-offline":
            from llmrec.embed.encoder import OfflineMiniLM

            return OfflineMiniLM(config)
        case "tfidf-svd":
            from llmrec.embed.encoder import TfidfEncoder

            return TfidfEncoder(config)
        case _:
            assert_never(config.encoder)


@dataclass
class Embeddings:
    """The vectors of a catalogue's items, with the encoder that made them."""

    item_ids: list[str]
    """N item ids, in catalogue order."""
    vectors: np.ndarray
    """float32 [N, D]."""
    encoder: Encoder
    """The encoder that made the vectors; it embeds queries and items added later in the same space."""

    def save(self, folder: Path) -> None:
        """Write embeddings.safetensors, item_ids.parquet, embed.json and the encoder's own files."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"embeddings": np.ascontiguousarray(self.vectors)}, folder / "embeddings.safetensors")
        pl.DataFrame({"item_id": self.item_ids}).write_parquet(folder / "item_ids.parquet")
        (folder / "embed.json").write_text(json.dumps(asdict(self.encoder.config), indent=2) + "\n", "utf-8")
        self.encoder.save(folder)

    @classmethod
    def load(cls, folder: Path) -> "Embeddings":
        """Read what `save` wrote."""
        config = EmbedConfig.from_dict(json.loads((folder / "embed.json").read_text("utf-8")))
        return cls(
            pl.read_parquet(folder / "item_ids.parquet")["item_id"].to_list(),
            load_file(folder / "embeddings.safetensors")["embeddings"],
            make_encoder(config).load(folder),
        )

    def take_ids(self, item_ids: Sequence[str]) -> "Embeddings":
        """The embeddings of `item_ids`, in their order; raises KeyError for an item without a vector."""
        index = {item: row for row, item in enumerate(self.item_ids)}
        return Embeddings(list(item_ids), self.vectors[[index[item] for item in item_ids]], self.encoder)


def embed(
    catalog: Catalog, config: EmbedConfig, log: Interactions | None = None, fit_on: Catalog | None = None
) -> Embeddings:
    """Embed every item of `catalog`; first fit the encoder, and align it if `config.align` is on.

    Args:
        catalog: N items.
        config: the encoder and its settings.
        log: the training events; only alignment reads them.
        fit_on: the items of `catalog` on which the encoder is fitted and aligned; default: all items.

    Returns:
        The N vectors, in catalogue order, and the fitted encoder.

    Raises:
        UserError: an item has no text, the encoder cannot be loaded or fitted, or a file of vectors is wrong (as for
            `read_vectors`). With alignment also: there is no
            log, the log has an item that is not in `fit_on`, or no item pair is frequent enough.
    """
    fit_on = catalog if fit_on is None else fit_on
    if config.sources:
        given = GivenVectors(config, _text_encoder(config) if TEXT in config.sources else None).fit_catalog(fit_on)
        return Embeddings(catalog.ids, given.of_items(catalog, config.files, "--embed.vectors"), given)
    texts = item_texts(fit_on, config)
    encoder = make_encoder(config).fit(texts)
    if isinstance(encoder, AlignedEncoder):
        if log is None:
            raise UserError(
                f"--embed.align.epochs is {config.align.epochs}, but there is no log of training events to align "
                "with; give one, or set it to 0"
            )
        encoder.align(texts, Behaviour.from_log(log, fit_on.ids))
    vectors = encoder.encode(texts)
    others = Catalog(catalog.frame.filter(~pl.col("item_id").is_in(fit_on.frame["item_id"].implode())))
    if not len(others):
        return Embeddings(fit_on.ids, vectors, encoder)
    # Encoded in a separate call: the other items in a batch can change the last bits of a vector.
    vectors = np.concatenate([vectors, encoder.encode(item_texts(others, config))])
    return Embeddings([*fit_on.ids, *others.ids], vectors, encoder).take_ids(catalog.ids)
