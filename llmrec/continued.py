"""Runs that go on from a bundle: `--base.model BUNDLE`.

Such a run keeps the bundle's weights, item tokens, encoder, semantic IDs and dense head. New items get their semantic
IDs as `add-items` gives them. The run trains on its own log, with a learning rate schedule of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.config import Config
from llmrec.console import get_logger
from llmrec.data.prepare import Prepared
from llmrec.embed import Embeddings, Encoder, make_encoder
from llmrec.embed.config import IMAGE, TEXT
from llmrec.errors import UserError
from llmrec.index.dense import DenseIndex
from llmrec.model.tokens import ItemVocabulary
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender import bundle
from llmrec.tasks.users import UserTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmrec.recommender.recommender import Recommender

log = get_logger(__name__)

FREE = ("embed.cache", "embed.batch_size", "embed.dtype", "embed.vectors", "embed.without_text", "tokenize.file")
"""Fields of `embed` and `tokenize` that may differ from the bundle's, or that have a check of their own."""


def bundle_of(config: Config) -> Path | None:
    """The folder of the bundle that the run goes on from; None if `base.model` is no bundle in a local folder."""
    folder = None if config.base.model is None else Path(config.base.model)
    return folder if folder is not None and (folder / bundle.HEADER).is_file() else None


def going_on(model: Path) -> str:
    """How the bundle of a run is trained further, in words."""
    return f"to train the model further instead, use --base.model {model} with another --run"


def kept_files(config: Config) -> list[Path]:
    """The files of the bundle from which the stages `embed` and `tokenize` take encoder and semantic IDs."""
    folder = bundle_of(config)
    return [] if folder is None else sorted(path for path in (folder / bundle.QUANTIZER).iterdir() if path.is_file())


def kept_tokenizer(config: Config) -> ItemTokenizer | None:
    """The item tokenizer of the bundle; None if the run does not go on from one."""
    folder = bundle_of(config)
    return None if folder is None else ItemTokenizer.load(folder / bundle.QUANTIZER)


def kept_encoder(config: Config) -> Encoder | None:
    """The encoder of the bundle with the settings of the run, which `check_bundle` has compared; None as above."""
    folder = bundle_of(config)
    return None if folder is None else make_encoder(config.embed).load(folder / bundle.QUANTIZER)


def with_kept_codes(tokenizer: ItemTokenizer, embeddings: Embeddings, prepared: Prepared) -> ItemTokenizer:
    """The bundle's item tokenizer for the items of this run, with a new report.

    Items that it knows keep their semantic IDs; new items get free ones.

    Args:
        tokenizer: of the bundle.
        embeddings: of the N items of `prepared`, by the tokenizer's encoder.
        prepared: catalogue and log.

    Raises:
        UserError: no semantic ID is free.
    """
    known = set(tokenizer.item_ids)
    new = np.array([item not in known for item in embeddings.item_ids], bool)
    every = tokenizer.with_items([item for item in embeddings.item_ids if item not in known], embeddings.vectors[new])
    index = {item: row for row, item in enumerate(every.item_ids)}
    rows = np.array([index[item] for item in embeddings.item_ids])
    kept = every.take_rows(rows)
    kept.encoder, kept.embed_config = embeddings.encoder, embeddings.encoder.config
    log.info("%d items keep their semantic IDs, %d are new", len(new) - new.sum(), new.sum())
    return kept.measured(embeddings.vectors, prepared.split.train, prepared.catalog.frame["title"].to_list())


def item_vocabulary(
    config: Config, tokenizer: "PreTrainedTokenizerBase", level_sizes: Sequence[int], before: str = ""
) -> ItemVocabulary:
    """The item tokens of the tokenizer of `base.model`: those of the bundle, or new ones, which are added.

    Their names begin with `before` and `base.token_prefix`.
    """
    of = ItemVocabulary.add_to if bundle_of(config) is None else ItemVocabulary.of
    return of(tokenizer, level_sizes, before + config.base.token_prefix)


def user_tokens(config: Config, tokenizer: "PreTrainedTokenizerBase", items: ItemTokenizer) -> UserTokens | None:
    """The tokens of users, made as `item_vocabulary` makes those of items; None without `tasks.user_tokens`."""
    if not config.tasks.user_tokens:
        return None
    of = UserTokens.add_to if bundle_of(config) is None else UserTokens.of
    return of(tokenizer, items, config.base.token_prefix)


def recommender_to_train(config: Config, base: Path, tokenizer: ItemTokenizer, prepared: Prepared) -> "Recommender":
    """The recommender that the train stage trains: from the bundle, or from a base model and new item tokens.

    Args:
        config: of the run.
        base: folder of the base model that the run made, if `base.model` is unset.
        tokenizer: of the items of `prepared`.
        prepared: catalogue and log.
    """
    from llmrec.recommender.further import further
    from llmrec.recommender.recommender import Recommender
    from llmrec.tasks.config import load_templates

    folder, frozen = bundle_of(config), config.train.method == "lora"
    if folder is not None:
        log.info("Training goes on from %s", folder)
        # Absolute, as an adapter keeps the name of its base, which must be valid in any working directory.
        return further(folder.resolve(), tokenizer, prepared.catalog, config.base, frozen, config.tasks)
    return Recommender.from_base(
        config.base.model or base.resolve(),
        tokenizer,
        prepared.catalog,
        config.base,
        frozen=frozen,
        templates=load_templates(config.tasks.prompts),
        max_history=config.tasks.max_history,
        user_tokens=config.tasks.user_tokens,
        title_tokens=config.tasks.title_tokens,
    )


def check_bundle(config: Config) -> None:
    """Check that the run can go on from its bundle, if it has one.

    Raises:
        UserError: the bundle is damaged; a setting differs from the bundle's, so that its semantic IDs, item tokens or
            dense head could not be kept; or a setting does nothing for a bundle.
    """
    folder = bundle_of(config)
    if folder is None:
        return
    header = bundle.read_header(folder)
    tokenizer, subject = ItemTokenizer.load(folder / bundle.QUANTIZER), f"--base.model {folder} is a bundle"
    if tokenizer.encoder is None:
        raise UserError(f"{subject} without an encoder, so new items get no vectors; go on in Python, with `fit`.")
    if config.data.regime == "strict":
        raise UserError(
            f"--data.regime strict: {subject}, which knows the cold items too; set --data.regime catalogue-known."
        )
    if config.refine.rounds:
        raise UserError(f"--refine.rounds {config.refine.rounds}: {subject}, whose semantic IDs are kept; set it to 0.")
    if config.tokenize.file is not None:
        raise UserError(
            f"--tokenize.file {config.tokenize.file}: {subject}, whose semantic IDs are kept; leave it out."
        )
    if config.embed.without_text == "behaviour":
        raise UserError(
            f"--embed.without_text behaviour: {subject}, and vectors made from a new log do not fit its own; set it to "
            "random. Items without text that the bundle knows keep their semantic IDs."
        )
    if config.base.dtype == "bfloat16":
        raise UserError(f"--base.dtype bfloat16: {subject}, whose weights keep their type; set it to auto.")
    found = {"embed": asdict(tokenizer.encoder.config), "tokenize": asdict(tokenizer.config)}
    found["tokenize"]["codes"] = tokenizer.config.level_sizes
    wanted = {
        "embed": asdict(config.embed),
        "tokenize": {**asdict(config.tokenize), "codes": config.tokenize.level_sizes},
    }
    found["base"] = {"token_prefix": header.token_prefix, "keep_layers": header.keep_layers, "bits": 32}
    wanted["base"] = {name: getattr(config.base, name) for name in found["base"]}
    found["tasks"], wanted["tasks"] = {"user_tokens": header.user_tokens}, {"user_tokens": config.tasks.user_tokens}
    for name, own, theirs in _differences(wanted, found):
        raise UserError(
            f"--{name} {_shown(own)}: {subject} with {name} {_shown(theirs)}; set it to {_shown(theirs)}, or name "
            "another base model."
        )
    theirs = tokenizer.encoder.config.sources
    if _kinds(config.embed.sources) != _kinds(theirs):
        raise UserError(
            f"--embed.vectors {config.embed.vectors}: {subject} whose vectors came from "
            f"{', '.join(theirs) or 'its encoder alone'}; name as many sources, in the same order."
        )
    _check_head(config, folder, subject)


def _kinds(sources: Sequence[str]) -> list[str]:
    """The sources of vectors in their order; every file is the same."""
    return [source if source in (TEXT, IMAGE) else "file" for source in sources]


def _shown(value: Any) -> Any:
    return value if value != "" else "''"


def _check_head(config: Config, folder: Path, subject: str) -> None:
    path, weight = folder / bundle.DENSE, config.train.dense.weight
    if not weight and path.exists():
        raise UserError(
            f"--train.dense.weight 0: {subject} with a dense head, which would no longer fit the model; set it to 1."
        )
    if weight and not path.exists():
        raise UserError(f"--train.dense.weight {weight}: {subject} without a dense head; set it to 0.")
    if not weight:
        return
    index, dense = DenseIndex.load(path), config.train.dense
    if (dim := index.vectors.shape[1]) != dense.dim:
        raise UserError(
            f"--train.dense.dim {dense.dim}: {subject} with a dense head of {dim} dimensions; set it to {dim}."
        )
    if index.own is not None and not dense.item_vectors:
        raise UserError(
            f"--train.dense.item_vectors false: {subject} with a dense head that has item vectors; set it to true."
        )


def _differences(wanted: dict[str, Any], found: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, wanted value, found value) of each field that differs, except for those in `FREE`."""
    for field, theirs in found.items():
        name, own = f"{before}{field}", wanted[field]
        if isinstance(theirs, dict):
            yield from _differences(own, theirs, f"{name}.")
        elif own != theirs and name not in FREE:
            yield name, own, theirs
