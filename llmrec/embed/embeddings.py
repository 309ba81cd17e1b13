"""A catalogue's vectors, and how they are made, saved and loaded."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
from safetensors.numpy import load_file, save_file

from llmrec.data.behaviour import Behaviour
from llmrec.data.catalog import Catalog
from llmrec.data.interactions import Interactions
from llmrec.embed.align import AlignedEncoder
from llmrec.embed.config import EmbedConfig
from llmrec.embed.encoder import Encoder
from llmrec.embed.methods import make_encoder
from llmrec.errors import UserError


@dataclass
class Embeddings:
    """The vectors of a catalogue's items, with the encoder that made them."""

    item_ids: list[str]
    """N item ids, in catalogue order."""
    vectors: np.ndarray
    """float32 [N, D]."""
    encoder: Encoder
    """Embeds later items and queries in the same space."""

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


def embed(catalog: Catalog, config: EmbedConfig, log: Interactions | None = None) -> Embeddings:
    """Embed every item of `catalog`, fitting the encoder on it where the encoder learns.

    Args:
        log: the training events, for alignment (`config.align`) to learn from; nothing else reads them.

    Raises:
        UserError: an item has no text, or the encoder cannot be loaded or fitted; for alignment, there is no log, the
            log names an item that the catalogue lacks, or it holds no pairs.
    """
    texts = item_texts(catalog, config)
    encoder = make_encoder(config).fit(texts)
    if isinstance(encoder, AlignedEncoder):
        if log is None:
            raise UserError(
                f"--embed.align.epochs is {config.align.epochs}, but there is no log of training events to align "
                "with; give one, or set it to 0"
            )
        encoder.align(texts, Behaviour.from_log(log, catalog.ids))
    return Embeddings(catalog.ids, encoder.encode(texts), encoder)


def item_texts(catalog: Catalog, config: EmbedConfig) -> list[str]:
    """The text of each item under the config's template [N].

    Raises:
        UserError: an item's text is empty.
    """
    template = config.template or catalog.whole_text
    texts = catalog.texts(template)
    for item_id, text in zip(catalog.ids, texts, strict=True):
        if not text.strip():
            raise UserError(
                f"item {item_id!r} has no text under the template {template!r}; "
                "drop it, fill one of these fields, or name other fields in --embed.template"
            )
    return texts
