"""The vectors of a catalogue's items, and the function that makes them.

To add an encoder, add a case to `_text_encoder`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import assert_never

import numpy as np
import polars as pl
from safetensors import safe_open
from safetensors.numpy import save_file

from llmrec.collaborative.behaviour import Behaviour, collaborative_vectors
from llmrec.data.catalog import Catalog
from llmrec.data.interactions import Interactions
from llmrec.embed.align import AlignedEncoder, without_log
from llmrec.embed.config import TEXT, EmbedConfig
from llmrec.embed.encoder import Encoder, item_texts
from llmrec.embed.given import GivenVectors
from llmrec.embed.graph import smoothed, user_graph
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
        save_file({"embeddings": np.ascontiguousarray(self.vectors, np.float32)}, folder / "embeddings.safetensors")
        pl.DataFrame({"item_id": self.item_ids}).write_parquet(folder / "item_ids.parquet")
        (folder / "embed.json").write_text(json.dumps(asdict(self.encoder.config), indent=2) + "\n", "utf-8")
        self.encoder.save(folder)

    @classmethod
    def load(cls, folder: Path, item_ids: Sequence[str] | None = None) -> "Embeddings":
        """Read what `save` wrote.

        Args:
            folder: its folder.
            item_ids: the items to read, in this order; None reads all. Other rows are never in memory together.

        Raises:
            KeyError: an item of `item_ids` has no vector.
        """
        config = EmbedConfig.from_dict(json.loads((folder / "embed.json").read_text("utf-8")))
        stored = pl.read_parquet(folder / "item_ids.parquet")["item_id"].to_list()
        chosen = stored if item_ids is None else list(item_ids)
        path = folder / "embeddings.safetensors"
        vectors = _read(path) if chosen == stored else _read_rows(path, _rows_of(chosen, stored))
        return cls(chosen, vectors, make_encoder(config).load(folder))

    def take_ids(self, item_ids: Sequence[str]) -> "Embeddings":
        """The embeddings of `item_ids`, in their order; raises KeyError for an item without a vector.

        If they are all items in the present order, the vectors are not copied.
        """
        chosen = list(item_ids)
        vectors = self.vectors if chosen == self.item_ids else self.vectors[_rows_of(chosen, self.item_ids)]
        return Embeddings(chosen, vectors, self.encoder)


BLOCK = 16_384
"""Number of stored vectors read at a time, where not all are wanted in their order."""


def _rows_of(chosen: Sequence[str], stored: Sequence[str]) -> np.ndarray:
    """The row in `stored` of each item of `chosen`, int64 [n]; raises KeyError for an item that is not there."""
    index = {item: row for row, item in enumerate(stored)}
    return np.array([index[item] for item in chosen], np.int64)


def _shape(path: Path) -> tuple[int, int]:
    """N and D of the only tensor of a safetensors file; raises SafetensorError for a damaged file."""
    with safe_open(path, framework="np") as file:
        return tuple(file.get_slice("embeddings").get_shape())


def _read(path: Path, start: int = 0, rows: int | None = None) -> np.ndarray:
    """Some `rows` of the tensor from row `start` on, or all of them: float32 [rows, D].

    safetensors would map the file, and what it copies from there would be in memory twice.
    """
    size, dims = _shape(path)
    rows = size - start if rows is None else rows
    offset = path.stat().st_size - (size - start) * dims * 4  # the tensor is at the end of its file
    return np.fromfile(path, "<f4", rows * dims, offset=offset).reshape(rows, dims)


def _read_rows(path: Path, rows: np.ndarray) -> np.ndarray:
    """The `rows`, int64 [n], of the tensor [N, D] of a safetensors file: float32 [n, D]."""
    size, dims = _shape(path)
    vectors = np.empty((len(rows), dims), np.float32)
    order = np.argsort(rows, kind="stable")
    for start in range(0, size, BLOCK):
        low, high = np.searchsorted(rows, [start, start + BLOCK], sorter=order)
        if high > low:
            wanted = order[low:high]
            vectors[wanted] = _read(path, start, min(BLOCK, size - start))[rows[wanted] - start]
    return vectors


def embed(
    catalog: Catalog,
    config: EmbedConfig,
    log: Interactions | None = None,
    fit_on: Catalog | None = None,
    fitted: Encoder | None = None,
) -> Embeddings:
    """Embed every item of `catalog`; first fit the encoder, and align it if `config.align` is on.

    Args:
        catalog: N items.
        config: the encoder and its settings.
        log: the training events; only alignment, `config.graph_trips` and `config.without_text` behaviour read them.
        fit_on: the items of `catalog` on which the encoder is fitted and aligned; default: all items.
        fitted: an encoder of the same configuration, which is used as it is.

    Returns:
        The N vectors, in catalogue order, and the fitted encoder.

    Raises:
        UserError: an item has no text and `config.without_text` is fail, the encoder cannot be loaded or fitted, or a
            file of vectors is wrong (as for `read_vectors`). With alignment or behaviour vectors also: there is no log,
            or it has an item that is not in `fit_on`. With alignment also: no item pair is frequent enough. With
            `config.graph_trips`: there is no log.
    """
    embeddings = _encoded(catalog, config, log, fit_on, fitted)
    if config.graph_trips:
        if log is None:
            raise UserError(
                f"--embed.graph_trips is {config.graph_trips}, but there is no log of training events to smooth over; "
                "give one, or set it to 0"
            )
        graph = user_graph(log, embeddings.item_ids)
        embeddings.vectors = smoothed(embeddings.vectors, graph, config.graph_trips, config.normalize)
    return embeddings


def _encoded(
    catalog: Catalog, config: EmbedConfig, log: Interactions | None, fit_on: Catalog | None, fitted: Encoder | None
) -> Embeddings:
    """The embeddings of `embed` before they are smoothed; the arguments are the same."""
    fit_on = catalog if fit_on is None else fit_on
    behaviour = None
    if log is not None and (config.align.epochs or config.without_text == "behaviour"):
        behaviour = Behaviour.from_log(log, fit_on.ids)
    if config.sources:
        given = fitted
        if not isinstance(given, GivenVectors):
            given = GivenVectors(config, _text_encoder(config) if TEXT in config.sources else None)
            given.fit_catalog(fit_on, behaviour)
        return Embeddings(catalog.ids, given.of_items(catalog, config.files, "--embed.vectors"), given)
    texts = _texts(fit_on, config)
    # If no item has a text, the ids are the only words that the encoder can learn from.
    encoder = fitted or make_encoder(config).fit([text for text in texts if text] or fit_on.ids)
    if isinstance(encoder, AlignedEncoder) and fitted is None:
        if behaviour is None:
            raise UserError(without_log(config.align))
        encoder.align(texts, behaviour)
    if config.without_text == "behaviour" and behaviour is None and not all(texts):
        raise UserError("--embed.without_text behaviour needs the log of training events; give one, or use random")
    vectors = encoder.encode(texts)
    _replace_silent(vectors, texts, fit_on.ids, config, behaviour)
    others = catalog.filter(~pl.col("item_id").is_in(fit_on.frame["item_id"].implode()))
    if not len(others):
        return Embeddings(fit_on.ids, vectors, encoder)
    # Encoded in a separate call: the other items in a batch can change the last bits of a vector.
    other_texts = _texts(others, config)
    other_vectors = encoder.encode(other_texts)
    _replace_silent(other_vectors, other_texts, others.ids, config, None)
    vectors = np.concatenate([vectors, other_vectors])
    return Embeddings([*fit_on.ids, *others.ids], vectors, encoder).take_ids(catalog.ids)


def _replace_silent(
    vectors: np.ndarray, texts: Sequence[str], item_ids: Sequence[str], config: EmbedConfig, behaviour: Behaviour | None
) -> None:
    """Replace the vectors of items without text as `config.without_text` says; they have length 1.

    An item that `behaviour` tells nothing about gets a random vector, which its id decides.
    """
    silent = np.flatnonzero([not text for text in texts])
    vectors[silent] = 0
    if len(silent) and config.without_text == "behaviour" and behaviour is not None:
        dim = min(vectors.shape[1], len(texts) - 1)
        vectors[silent, :dim] = collaborative_vectors(behaviour, dim, seed=0)[silent]
    for row in silent.tolist():
        if not vectors[row].any():
            seed = int.from_bytes(blake2b(item_ids[row].encode("utf-8"), digest_size=8).digest())
            drawn = np.random.default_rng(seed).standard_normal(vectors.shape[1])
            vectors[row] = drawn / np.linalg.norm(drawn)


def _texts(catalog: Catalog, config: EmbedConfig) -> list[str]:
    """The texts of the N items; an empty one is allowed unless `config.without_text` is fail."""
    if config.without_text == "fail":
        return item_texts(catalog, config)
    return catalog.texts(config.template or catalog.whole_text)
