"""ItemTokenizer: gives each item of a catalogue a semantic ID; saved and loaded as one folder."""

import copy
import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from safetensors.numpy import load_file, save_file

from llmrec.atomic import make_folder
from llmrec.checks import check_argument, checked
from llmrec.collaborative.behaviour import Behaviour
from llmrec.data.catalog import CHUNKS, Catalog
from llmrec.data.files import read_stored
from llmrec.data.ids import id_list, rows_of
from llmrec.data.interactions import Interactions
from llmrec.embed import (
    EmbedConfig,
    Encoder,
    GivenVectors,
    as_vectors,
    embed,
    item_texts,
    make_encoder,
    read_vectors,
)
from llmrec.errors import NotFittedError, UserError
from llmrec.quantize.arrivals import place, within_levels
from llmrec.quantize.base import BLOCK, LikelyWord, Quantizer
from llmrec.quantize.behaviour import BehaviourCodes
from llmrec.quantize.collisions import excess, resolve_collisions
from llmrec.quantize.config import Collisions, Method, RQVAEConfig, TokenizeConfig
from llmrec.quantize.joined import JoinedVectors
from llmrec.quantize.methods import quantizer_class
from llmrec.quantize.report import Report, measure
from llmrec.quantize.report.report import WORDS

SCHEMA = 2
CODES = "item_codes.parquet"
SECOND = "behaviour"
"""The column of the second codes in `CODES`, and the sizes of their levels in quantizer.json."""
JOINED = "collaborative"
"""The column of the joined behaviour in `CODES`, and the prefix of its tensors in quantizer.safetensors."""


class ItemTokenizer:
    """Turns items into semantic IDs. `fit` sets the attributes.

    Attributes:
        ids: the N item ids, in catalogue order; `item_ids` has them in a list.
        codes: the semantic IDs, int32 [N, L']; L' is L, or L + 1 with a dedup level.
        level_sizes: the number of codes of each of the L' levels.
        quantizer: the fitted `Quantizer` of the first L levels; it does not include the dedup level.
        encoder: the encoder of the catalogue's texts, for further texts; None if `fit_embeddings` got no encoder.
        behaviour: the items' second semantic IDs, if `config.behaviour` asks for them.
        joined: makes the vectors that the quantizer gets, if `config.collaborative` asks for them; else None, and the
            quantizer gets the items' embeddings.
        unconfirmed: the flag that must confirm a model before the encoder may be loaded; empty if none must. The name
            of a model may come from a bundle of somebody else, and then the caller of `load` must give it too.
        catalog: the catalogue that `fit` got; not saved with the tokenizer.
    """

    MADE_BY: ClassVar[str] = "ItemTokenizer(...).fit(catalog)"

    ids: pl.Series
    codes: np.ndarray
    level_sizes: list[int]
    quantizer: Quantizer
    encoder: Encoder | None
    behaviour: BehaviourCodes | None = None
    joined: JoinedVectors | None = None
    unconfirmed: Literal["", "--encoder", "--image-encoder"] = ""
    catalog: Catalog

    def __init__(
        self,
        method: Method = "rq-kmeans",
        levels: int = 3,
        codes: int | list[int] = 256,
        collisions: Collisions = "dedup",
        seed: int = 0,
        iterations: int = TokenizeConfig.iterations,
        fit_rows: int = TokenizeConfig.fit_rows,
        beams: int | None = None,
        balanced: bool = False,
        product_levels: int = TokenizeConfig.product_levels,
        rq_vae: RQVAEConfig | None = None,
        file: str | None = None,
        behaviour: int = 0,
        collaborative: int = 0,
        collaborative_weight: float = TokenizeConfig.collaborative_weight,
        embed: EmbedConfig | None = None,
    ) -> None:
        """The arguments are the fields of `TokenizeConfig`; `embed` configures how `fit` turns items into vectors."""
        self.config = TokenizeConfig(
            method=method,
            levels=levels,
            codes=codes,
            collisions=collisions,
            seed=seed,
            iterations=iterations,
            fit_rows=fit_rows,
            beams=beams,
            balanced=balanced,
            product_levels=product_levels,
            rq_vae=rq_vae or RQVAEConfig(),
            file=file,
            behaviour=behaviour,
            collaborative=collaborative,
            collaborative_weight=collaborative_weight,
        )
        check_argument("embed", embed, EmbedConfig | None)
        self.embed_config = embed or EmbedConfig()

    def __getattr__(self, name: str) -> Any:
        # A property that reads a missing attribute ends here, too.
        if name in ("_report", "item_ids", "dims", *ItemTokenizer.__annotations__) and "ids" not in vars(self):
            raise NotFittedError(f"The item tokenizer has no {name.strip('_')} before it is fitted; call fit(catalog).")
        if name == "catalog":
            raise NotFittedError("The item tokenizer was loaded or given vectors, so it has no catalog; give catalog.")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @classmethod
    def from_config(cls, config: TokenizeConfig, embed: EmbedConfig | None = None) -> Self:
        """Make an unfitted tokenizer from the `tokenize` and `embed` sections of a configuration."""
        return cls(**vars(config), embed=embed)

    @checked
    def fit(self, catalog: Catalog, log: Interactions | None = None) -> Self:
        """Embed the catalogue's items and learn their semantic IDs.

        Args:
            catalog: the N items.
            log: the training events; see `fit_embeddings`.

        Returns:
            The fitted tokenizer itself.

        Raises:
            UserError: an item has no text, the encoder can't be loaded, or `fit_embeddings` raises it.
        """
        embeddings = embed(catalog, self.embed_config, log)
        self.catalog = catalog
        titles = catalog.frame["title"].to_list()
        items = (embeddings.item_ids, embeddings.vectors, embeddings.encoder)
        return self.fit_embeddings(*items, log, titles, self.texts(catalog))

    @checked
    def fit_embeddings(
        self,
        item_ids: Sequence[str],
        embeddings: ArrayLike,
        encoder: Encoder | None = None,
        log: Interactions | None = None,
        titles: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
    ) -> Self:
        """Learn the semantic IDs of items with the given embeddings.

        Args:
            item_ids: N ids.
            embeddings: floats [N, D], may be memory-mapped; read in blocks, never copied as a whole but for
                `config.collaborative`, which needs one copy.
            encoder: the encoder that made the embeddings.
            log: the training events. Required if the configuration needs them; the report uses them if given.
            titles: N titles, from which the report describes the first-level codes in words.
            texts: N texts, as `texts` makes them. Required if the configuration needs them.

        Returns:
            The fitted tokenizer itself.

        Raises:
            UserError: a file of semantic IDs is wrong (as for `read_codes`), embeddings that are not [N, D] or not
                finite, a repeated id, fewer distinct embeddings than codes, no log or texts although the configuration
                needs them, an item of the log that is not in `item_ids`, not N titles or texts, or more items than
                tuples of codes with collisions `nearest-free`.
        """
        item_ids = id_list(item_ids, "item_ids")
        embeddings = as_vectors(embeddings, "embeddings", item_ids)
        if repeats := len(item_ids) - len(set(item_ids)):
            raise UserError(f"item_ids: found {repeats} repeated ids, expected each once; drop the repeats.")
        for name, each in (("titles", titles), ("texts", texts)):
            if each is not None and len(each) != len(item_ids):
                raise UserError(f"{name}: found {len(each)} for {len(item_ids)} items, expected one for each.")
        if log is None and self.config.needs_log:
            raise UserError(_needs_log(self.config))
        self.ids, self.item_ids, self.encoder = _series(item_ids), item_ids, encoder
        if encoder is not None:
            self.embed_config = encoder.config
        behaviour = Behaviour.from_log(log, self.item_ids) if log is not None else None
        collaborative = self._collaborative(behaviour)
        start, file = time.perf_counter(), self.config.file
        if self.config.collaborative and behaviour is not None:
            self.joined = JoinedVectors.fit(self.config, embeddings, behaviour)
        embeddings = self.inputs(self.item_ids, embeddings)
        if file is None:
            self.quantizer = quantizer_class(self.config.method)(self.config).fit(embeddings, collaborative, texts)
            codes = None
        else:
            from llmrec.quantize.given import quantizer_of, read_codes

            codes, sizes = read_codes(file, self.item_ids)
            self.config = replace(self.config, levels=len(sizes), codes=sizes, file=None)
            self.quantizer = quantizer_of(self.config, embeddings, codes)
        fit_seconds = time.perf_counter() - start
        codes = self.quantizer.assign(embeddings) if codes is None else codes
        counts = behaviour.counts if behaviour is not None else None
        # A file's semantic IDs get no dedup level that they don't need.
        strategy: Collisions = "share" if file is not None and not excess(codes) else self.config.collisions
        self.codes, self.level_sizes = resolve_collisions(
            strategy, codes, self.quantizer.level_sizes, self.quantizer, embeddings, counts
        )
        if self.config.behaviour and behaviour is not None:
            self.behaviour = BehaviourCodes.fit(self.config, behaviour)
        figures = measure(
            embeddings, codes, self.codes, self.quantizer, self.config.seed, behaviour, self.item_ids, titles
        )
        self._report = Report(
            method=self.config.method if file is None else "file",
            **figures,
            fit_seconds=fit_seconds,
            encode_items_per_second=_encoding_speed(self.quantizer, embeddings[:BLOCK]),
            training=self.quantizer.training,
            word_perplexity=self.quantizer.word_perplexity,
        )
        return self

    @checked
    def texts(self, catalog: Catalog) -> list[str] | None:
        """The N texts of `catalog` that the quantizer learns from, made as those that are embedded; an item may have
        an empty one. None if the quantizer learns from none."""
        if not self.config.needs_texts:
            return None
        return catalog.texts(self.embed_config.template or catalog.whole_text)

    def words_of(self, codes: np.ndarray, most: int = WORDS) -> list[list[LikelyWord]]:
        """What the tokenizer's text decoder says of codes, of which no item need have any.

        Args:
            codes: integers [n, m], semantic IDs or the first codes of some; a dedup level is left out.
            most: largest number of words per tuple.

        Returns:
            Per tuple at most `most` words, those first that best distinguish its texts from all texts; see
            `Quantizer.words_of`.

        Raises:
            UserError: the tokenizer has no text decoder.
            ValueError: a code is outside its level's codebook.
        """
        words = self.quantizer.words_of(np.asarray(codes)[:, : self.quantizer.levels], most)
        if words is None:
            raise UserError(
                f"a tokenizer of method {self.config.method} without a text decoder has no words for its codes; fit "
                "one with method rq-vae and --tokenize.rq_vae.loss.words above 0"
            )
        return words

    def _collaborative(self, behaviour: Behaviour | None) -> np.ndarray | None:
        """Collaborative vectors [N, d], d = `rq_vae.latent`; None if the quantizer's loss does not use them."""
        if behaviour is None or not self.config.needs_collaborative:
            return None
        from llmrec.collaborative.behaviour import collaborative_vectors

        return collaborative_vectors(behaviour, dim=self.config.rq_vae.latent, seed=self.config.seed)

    def encode(self, embeddings: ArrayLike) -> np.ndarray:
        """Codes (int32 [n, L]) of any embeddings (float32 [n, D]), without resolving collisions.

        With `config.collaborative`, they are the codes of items without training events.

        Raises:
            UserError: they are not [n, D] with the D of the fitted embeddings, or not finite.
        """
        return self.quantizer.encode(self._as_new(as_vectors(embeddings, "embeddings")))

    @cached_property
    def item_ids(self) -> list[str]:
        """The N item ids, in catalogue order."""
        return self.ids.to_list()

    @property
    def dims(self) -> int:
        """D, the number of dimensions of the items' embeddings."""
        return self.quantizer.dims if self.joined is None else len(self.joined.mean)

    def inputs(self, item_ids: Sequence[str], embeddings: np.ndarray) -> np.ndarray:
        """What the quantizer gets for n items: `embeddings`, with `config.collaborative` joined with behaviour.

        Args:
            item_ids: of the n items; those that the tokenizer lacks count as items without training events.
            embeddings: floats [n, D].

        Raises:
            UserError: D differs from that of the fitted embeddings.
        """
        if self.joined is None:
            return embeddings
        return self.joined.join(embeddings, rows_of(self.ids, item_ids))

    def _as_new(self, embeddings: np.ndarray) -> np.ndarray:
        """What the quantizer gets for items without training events."""
        return embeddings if self.joined is None else self.joined.join(embeddings)

    @checked
    def embed(self, catalog: Catalog, files: Sequence[str] = ()) -> np.ndarray:
        """Vectors (float32 [n, D]) of any n items, made as the fitted embeddings were.

        Args:
            catalog: n items, with their images if the tokenizer was fitted on images.
            files: their vectors, for a tokenizer that was fitted on files in `embed.vectors`: one for each of those.

        Raises:
            UserError: there is no encoder, it can't or must not be loaded, an item has no text, or the files are not
                those that are needed.
        """
        if self.encoder is None and len(files) == 1:
            return read_vectors(files[0], catalog.ids, "--vectors")
        if self.encoder is None:
            raise UserError("the item tokenizer was fitted on vectors, without an encoder; give the items' vectors")
        if self.unconfirmed:
            config = self.encoder.config
            model = config.model if self.unconfirmed == "--encoder" else config.image_encoder
            raise UserError(
                f"{self.unconfirmed} is missing: the bundle's items were embedded by {model!r:.200}, and a bundle of "
                f"somebody else can name anything there; give {self.unconfirmed} with that name, or your own copy of "
                "it, to load it."
            )
        if isinstance(self.encoder, GivenVectors):
            return self.encoder.of_items(catalog, files, "--vectors")
        if files:
            raise UserError(
                "--vectors: the bundle's encoder makes the vectors of new items from their texts; leave it out."
            )
        return self.encoder.encode(item_texts(catalog, self.encoder.config))

    def with_items(self, item_ids: Sequence[str], vectors: ArrayLike) -> Self:
        """A tokenizer with n more items after the present ones, whose codes don't change.

        The two tokenizers share quantizer and report.

        Args:
            item_ids: n ids, none of which the tokenizer has already.
            vectors: floats [n, D], made in the same way as the fitted embeddings.

        Raises:
            UserError: `vectors` is not [n, D], has NaN or infinite values, or no semantic ID is free.
        """
        item_ids = id_list(item_ids, "item_ids")
        x = self._as_new(np.asarray(as_vectors(vectors, "vectors", item_ids), np.float32))
        codes = self.quantizer.encode(x)
        new = place(self.config.collisions, self.codes, self.level_sizes, codes, self.quantizer, x)
        ids = pl.concat([self.ids, _series(item_ids)], rechunk=self.ids.n_chunks() >= CHUNKS)

        def rows() -> np.ndarray:
            return np.append(np.arange(len(self.codes)), np.full(len(new), -1))

        return self._with(ids, np.concatenate([self.codes, new]), rows)

    def without_items(self, item_ids: Collection[str]) -> Self:
        """A tokenizer without these items; the other items keep their codes and their order.

        Raises:
            UserError: the tokenizer lacks one of the items.
        """
        wanted = set(id_list(item_ids, "item_ids"))
        gone = self.ids.is_in(_series(list(wanted)).implode())
        if gone.sum() < len(wanted):
            missing = sorted(wanted.difference(self.ids))
            raise UserError(f"item_ids: the item tokenizer has no {missing[0]!r} ({len(missing)} such ids).")
        return self.take_rows((~gone).arg_true().to_numpy().astype(np.int64))

    def take_rows(self, rows: np.ndarray) -> Self:
        """A tokenizer of the items in `rows`, int64 [n], in this order; they keep their codes."""
        return self._with(self.ids.gather(rows), self.codes[rows], lambda: rows)

    def _with(self, ids: pl.Series, codes: np.ndarray, rows: Callable[[], np.ndarray]) -> Self:
        """A copy with other items and codes [n, L'], without `catalog`.

        `rows` makes the rows for `BehaviourCodes.of_rows`; it is called only if the items have more than codes.
        """
        other = copy.copy(self)
        for name in ("catalog", "item_ids"):
            other.__dict__.pop(name, None)
        other.ids, other.codes = ids, codes
        other.behaviour = None if self.behaviour is None else self.behaviour.of_rows(rows())
        other.joined = None if self.joined is None else self.joined.of_rows(rows())
        return other

    def report(self) -> Report:
        """Quality of the semantic IDs, measured during `fit`."""
        return self._report

    def measured(self, vectors: np.ndarray, log: Interactions, titles: Sequence[str]) -> Self:
        """The tokenizer with a report on its present items; the arguments are those of `fit_embeddings`."""
        other, codes = copy.copy(self), self.codes[:, : self.quantizer.levels]
        behaviour, x = Behaviour.from_log(log, self.item_ids), self.inputs(self.item_ids, vectors)
        figures = measure(x, codes, self.codes, self.quantizer, self.config.seed, behaviour, self.item_ids, titles)
        other._report = Report({**self._report, **figures})
        return other

    def requantized(self, quantizer: Quantizer, vectors: np.ndarray, log: Interactions, titles: Sequence[str]) -> Self:
        """The tokenizer with another quantizer of as many codes, which gives its items new semantic IDs, and a new
        report. The levels keep their sizes, so that a language model has a row for each code.

        Args:
            quantizer: as `llmrec.quantize.refine.refined` gives it.
            vectors: as for `fit_embeddings`, and so are `log` and `titles`.

        Raises:
            UserError: no semantic ID is free.
        """
        other, x = copy.copy(self), self.inputs(self.item_ids, vectors)
        counts, codes = Behaviour.from_log(log, self.item_ids).counts, quantizer.assign(x)
        other.quantizer = quantizer
        other.codes = within_levels(self.config.collisions, codes, self.level_sizes, quantizer, x, counts)
        return other.measured(vectors, log, titles)

    @checked
    def save(self, folder: str | Path) -> None:
        """Write quantizer.safetensors, quantizer.json, item_codes.parquet, report.json, and the encoder's files."""
        tensors = {name: np.ascontiguousarray(array) for name, array in self.quantizer.tensors().items()}
        folder = make_folder(folder)
        if self.joined is not None:
            tensors |= {f"{JOINED}.{name}": array for name, array in self.joined.tensors().items()}
        save_file(tensors, folder / "quantizer.safetensors")
        _write_json(folder / "quantizer.json", self._header())
        self.save_codes(folder)
        _write_json(folder / "report.json", self._report)
        if self.encoder is not None:
            self.encoder.save(folder)

    def save_codes(self, folder: Path) -> None:
        """Write item_codes.parquet, the only file of `save` with data per item."""
        arrays = {"codes": self.codes} | ({} if self.behaviour is None else {SECOND: self.behaviour.codes})
        arrays |= {} if self.joined is None else {JOINED: self.joined.behaviour}
        columns = [pl.Series(name, array).arr.to_list() for name, array in arrays.items()]
        pl.DataFrame([self.ids, *columns]).write_parquet(folder / CODES)

    def _header(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "method": self.config.method,
            "config": self.quantizer.config(),
            "level_sizes": self.level_sizes,
            **({} if self.behaviour is None else {SECOND: self.behaviour.level_sizes}),
            "embed": _portable(self.encoder.config) if self.encoder is not None else None,
        }

    @classmethod
    @checked
    def load(
        cls, folder: str | Path, own: bool = True, encoder: str | None = None, image_encoder: str | None = None
    ) -> Self:
        """Read what `save` wrote.

        Args:
            folder: the folder with quantizer.json.
            own: whether the folder was made on this machine. If not, a sentence-transformers encoder is loaded only if
                the caller names it in `encoder`, and a model of images only if in `image_encoder`.
            encoder: folder or Hub id of the sentence-transformers encoder; it replaces the saved name.
            image_encoder: the same for the model of the items' images.

        Raises:
            UserError: the folder is not a saved tokenizer, its schema version differs, `encoder` is given but the saved
                encoder is not of sentence-transformers, or `image_encoder` is given but there is none.
        """
        folder = Path(folder)
        path = folder / "quantizer.json"
        if not path.is_file():
            raise UserError(f"{folder}: no quantizer.json, so not a saved item tokenizer; run `llmrec tokenize`")
        try:
            tokenizer = cls._read(folder, json.loads(path.read_text("utf-8")), encoder, image_encoder)
        except Exception as error:  # json, polars, safetensors and quantizers raise many types on wrong files
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{folder}: not a saved item tokenizer ({reason}); run `llmrec tokenize`") from None

        config = None if tokenizer.encoder is None else tokenizer.encoder.config
        named, shown = config is not None and config.names_a_model, config is not None and config.reads_images
        if encoder is not None and not named:
            raise UserError(f"--encoder {encoder}: this bundle embeds without sentence-transformers; leave it out.")
        if image_encoder is not None and not shown:
            raise UserError(f"--image-encoder {image_encoder}: this bundle embeds no images; leave it out.")
        if not own and named and encoder is None:
            tokenizer.unconfirmed = "--encoder"
        elif not own and shown and image_encoder is None:
            tokenizer.unconfirmed = "--image-encoder"
        return tokenizer

    @classmethod
    def _read(cls, folder: Path, header: dict[str, Any], encoder: str | None, image_encoder: str | None) -> Self:
        if header["schema"] != SCHEMA:
            raise UserError(f"{folder}: schema {header['schema']}, this llmrec reads {SCHEMA}; tokenize again")
        if header["config"]["levels"] > len(header["level_sizes"]):  # check before allocating anything of that size
            raise UserError(f"{folder}: more levels in config than in level_sizes; tokenize again")
        # The cache folder is a setting of this machine; a bundle must not set it.
        embed_config = EmbedConfig.from_dict(header["embed"] | {"cache": None}) if header["embed"] else None
        if embed_config is not None and encoder is not None:
            embed_config = replace(embed_config, model=encoder)
        if embed_config is not None and embed_config.reads_images and image_encoder is not None:
            embed_config = replace(embed_config, image_encoder=image_encoder)
        tokenizer = cls.from_config(TokenizeConfig.from_dict(header["config"]), embed_config)
        tokenizer.encoder = make_encoder(embed_config).load(folder) if embed_config else None
        stored, start = load_file(folder / "quantizer.safetensors"), f"{JOINED}."
        tensors = {name: array for name, array in stored.items() if not name.startswith(start)}
        joined = {name.removeprefix(start): array for name, array in stored.items() if name.startswith(start)}
        tokenizer.quantizer = quantizer_class(header["method"]).from_state(header["config"], tensors)
        tokenizer.level_sizes = header["level_sizes"]
        frame = read_stored(folder / CODES)
        tokenizer.ids = frame["item_id"]
        tokenizer.codes = frame["codes"].list.to_array(len(tokenizer.level_sizes)).to_numpy()
        if sizes := header.get(SECOND):
            tokenizer.behaviour = BehaviourCodes(frame[SECOND].list.to_array(len(sizes)).to_numpy(), sizes)
        if tokenizer.config.collaborative:
            own = frame[JOINED].list.to_array(tokenizer.config.collaborative).to_numpy()
            tokenizer.joined = JoinedVectors.from_tensors(joined, own)
        tokenizer._report = Report(json.loads((folder / "report.json").read_text("utf-8")))
        return tokenizer


def _series(item_ids: Sequence[str]) -> pl.Series:
    return pl.Series("item_id", item_ids, pl.String)


def _needs_log(config: TokenizeConfig) -> str:
    if config.collisions == "dedup-popularity":
        return "--tokenize.collisions dedup-popularity ranks items by the training log; pass log=, or choose dedup"
    if config.behaviour:
        return f"--tokenize.behaviour {config.behaviour} makes codes of the training log; pass log=, or set it to 0"
    if config.collaborative:
        return f"--tokenize.collaborative {config.collaborative} needs the training log; pass log=, or set it to 0"
    return (
        f"--tokenize.rq_vae.loss.collaborative is {config.rq_vae.loss.collaborative}, which learns from the training "
        "log; pass log=, or set it to 0"
    )


def _portable(config: EmbedConfig) -> dict[str, Any]:
    """The fields of `config` without paths of this machine: no cache folder, and only the names of vector files."""
    names = [Path(source).name for source in config.sources]
    return asdict(config) | {"cache": None, "vectors": names or None}


def _encoding_speed(quantizer: Quantizer, block: np.ndarray) -> float:
    """Speed of `encode` in items per second; call it after a first `encode`, to leave out the warm-up."""
    start = time.perf_counter()
    quantizer.encode(block)
    return len(block) / (time.perf_counter() - start)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
