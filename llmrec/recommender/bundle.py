"""The bundle: a Hugging Face checkpoint, plus the files that llmrec needs.

All files are safetensors, JSON, YAML, parquet or text. transformers and peft load their files without llmrec.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl

from llmrec.atomic import write_file, write_text
from llmrec.collaborative import fused
from llmrec.data.files import read_stored
from llmrec.decode.config import Scoring
from llmrec.errors import UserError
from llmrec.preference.config import PreferenceMethod
from llmrec.recommender import hub
from llmrec.recommender.safety import ADAPTER, check_files, check_parts, read_object
from llmrec.resources import is_repo_id

SCHEMA = 2


SCHEMAS = (1, 2)
"""The schemas that this llmrec reads. In schema 1, `item_index.parquet` names fields without a prefix."""


HEADER = "llmrec.json"


INDEX = "item_index.parquet"


TRIE = "trie.safetensors"


DENSE = "dense.safetensors"


FUSION = "fusion.json"


EVENTS = "training_events"


OWN_FIELD = "fields."
"""Begins the name of each column of `item_index.parquet` that is a field of the catalogue: fields.brand."""


QUANTIZER = "quantizer"


PROMPTS = "prompts"


MOST_LEVELS = 26  # each level has a letter in the names of its item tokens: <a_12><b_7>


@dataclass(frozen=True)
class Header:
    """The content of `llmrec.json`.

    Attributes:
        schema: version of the file format.
        llmrec: version of llmrec that wrote the file.
        levels: L, the number of codes per item; the dedup level counts.
        level_sizes: C_l, the number of codes of each of the L levels.
        token_prefix: the prefix of the item tokens' names.
        scoring: how answers are scored (see `DecodeConfig`). It is the scoring of the last evaluation, and the default
            for decoding.
        base_model: name of the model that the training started from.
        weights: `model` (all weights) or `adapter` (a PEFT adapter with the rows of the item tokens; it needs the
            base model).
        max_history: largest number of history items in a prompt.
        keep_layers: number of decoder layers of the base model that training kept, the first ones; 0: all. The base of
            an adapter is cut to them when it is loaded.
        preference: method of the preference alignment after the training.
        bits: per weight of the linear layers of the base that an adapter was trained on; 32: not quantized.
        user_tokens: whether each history in a prompt begins with tokens of its user.
        title_tokens: most tokens of each item's title in a history.
        files: file name -> size in bytes, for all other files of the bundle except the model card. Loading compares
            the sizes and so finds damaged files.
    """

    schema: int
    llmrec: str
    levels: int
    level_sizes: list[int]
    token_prefix: str
    scoring: Scoring
    base_model: str
    weights: Literal["model", "adapter"]
    max_history: int
    keep_layers: int = 0
    preference: PreferenceMethod = "none"
    bits: int = 32
    user_tokens: bool = False
    title_tokens: int = 0
    files: dict[str, int] = field(default_factory=dict)


def header_text(header: Header) -> str:
    """The text of `llmrec.json`."""
    return json.dumps(asdict(header), indent=1) + "\n"


def write_header(header: Header, folder: Path) -> None:
    """Write `llmrec.json` atomically, with the current sizes of the bundle's files."""
    names = [name for name in hub.published_files(folder) if name not in (HEADER, hub.CARD)]
    sizes = {name: (folder / name).stat().st_size for name in names}
    write_text(folder / HEADER, header_text(replace(header, schema=SCHEMA, files=sizes)))


def read_header(folder: Path) -> Header:
    """Read and check `llmrec.json`.

    Raises:
        UserError: the file is missing, is not JSON or has another schema; or a file of the bundle is missing or has
            another size than `llmrec.json` lists.
    """
    header = parse_header(folder)
    for name, size in header.files.items():
        _check_size(folder, name, size)
    return header


def parse_header(folder: Path) -> Header:
    """Read and check `llmrec.json`, but not the sizes of the other files.

    Raises:
        UserError: the file is missing, is not JSON, has another schema, or has a field with an invalid value.
    """
    path = folder / HEADER
    if not path.is_file():
        inside = folder / "model"
        hint = f"; name {inside}, the one of this run" if (inside / HEADER).is_file() else ""
        raise UserError(f"{folder}: no llmrec bundle there ({HEADER} is missing){hint}.")
    raw = read_object(path)
    if raw.get("schema") not in SCHEMAS:
        raise UserError(f"{path}: schema {raw.get('schema')!r:.80}, but this llmrec reads schema 1 and {SCHEMA}.")
    try:
        header = Header(**raw)
    except TypeError as error:
        raise UserError(f"{path}: {error}.") from None
    for name, expected, fits in _expectations(header):
        if not fits:
            raise UserError(f"{path}: {name} {getattr(header, name)!r:.80}, expected {expected}.")
    return header


def _check_size(folder: Path, name: str, size: int) -> None:
    """Raise UserError if a file of the bundle is missing or has another size than `llmrec.json` lists."""
    path = folder / name
    if not path.is_file():
        if name != TRIE:  # the trie may be missing: it is built from the codes then
            raise UserError(f"{path}: is missing, but {HEADER} lists it; restore the bundle.")
    elif (found := path.stat().st_size) != size:
        raise UserError(
            f"{path}: {found:,} bytes, but {HEADER} says {size:,}; the file is damaged: restore it. If you changed it "
            f"on purpose, take it out of `files` in {HEADER}."
        )


def _expectations(header: Header) -> list[tuple[str, str, bool]]:
    """(field, expected value in words, whether the field has it), since JSON does not guarantee the fields' types."""

    def whole(value: Any, least: int = 1) -> bool:
        return type(value) is int and value >= least  # not isinstance: True would count as 1

    sizes, methods = header.level_sizes, get_args(PreferenceMethod)
    return [
        ("levels", f"a number from 1 to {MOST_LEVELS}", whole(header.levels) and header.levels <= MOST_LEVELS),
        (
            "level_sizes",
            "one number above 0 per level",
            isinstance(sizes, list) and all(map(whole, sizes)) and len(sizes) == header.levels,
        ),
        ("max_history", "a number above 0", whole(header.max_history)),
        ("keep_layers", "0 or a number above it", whole(header.keep_layers, 0)),
        (
            "files",
            "the bundle's files with their bytes",
            isinstance(header.files, dict)
            and all(hub.is_published(name) and type(size) is int for name, size in header.files.items()),
        ),
        *((name, "text", isinstance(getattr(header, name), str)) for name in ("llmrec", "token_prefix", "base_model")),
        ("scoring", f"one of {', '.join(get_args(Scoring))}", header.scoring in get_args(Scoring)),
        ("bits", "32, 8 or 4", type(header.bits) is int and header.bits in (32, 8, 4)),
        ("preference", f"one of {', '.join(methods)}", header.preference in methods),
        ("user_tokens", "true or false", isinstance(header.user_tokens, bool)),
        ("title_tokens", "0 or a number above it", whole(header.title_tokens, 0)),
        ("weights", "model or adapter", header.weights in ("model", "adapter")),
    ]


def locate(name: str | Path) -> Path:
    """The folder of a bundle.

    Args:
        name: a local folder, or a Hub repository, `org/name` or `org/name@revision`, which is downloaded.

    Raises:
        UserError: there is neither, or the bundle comes from the Hub and its base model is a local folder.
    """
    folder = Path(name)
    if os.path.isdir(folder):  # also False for a name that no path can have
        check_files(folder)
        return folder
    if folder.is_absolute() or str(name).count("/") != 1:
        raise UserError(f"--model {name}: no such folder, and not a Hub id (org/name).")
    folder = hub.download(str(name))
    check_files(folder)
    _check_base(folder, read_header(folder), f"--model {name}", "ask its author to publish one that names a Hub id")
    return folder


def push(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    message: str = hub.MESSAGE,
    license: str | None = None,
    datasets: Sequence[str] = (),
) -> str:
    """Publish the bundle in `folder` on the Hub. The arguments and the returned address are those of `hub.upload`.

    Raises:
        UserError: the folder holds no bundle, nobody else could load the bundle, or `hub.upload` fails.
    """
    folder = Path(folder)
    check_publishable(folder)
    return hub.upload(folder, repo_id, private, revision, message, license, datasets)


def check_publishable(folder: Path) -> None:
    """Check that the bundle in `folder` is whole, and that another machine can load it.

    Raises:
        UserError: the folder holds no bundle, or its adapter needs a base model that is not on the Hub.
    """
    check_files(folder)
    header = read_header(folder)
    _check_base(
        folder, header, f"--model {folder}", "train with --train.lora.merge true, or from a --base.model of the Hub"
    )
    check_parts(folder, header.weights, header.base_model)
    read_index(folder)


def require_writable(folder: Path) -> None:
    """Check that writing a bundle into `folder` replaces no files other than those of a bundle.

    Raises:
        UserError: the folder holds no bundle, but a file with the name of a bundle file.
    """
    in_the_way = [] if (folder / HEADER).exists() else hub.published_files(folder)
    if in_the_way:
        raise UserError(f"{folder}: holds {in_the_way[0]} and no {HEADER}, so no bundle; name another folder.")


def _check_base(folder: Path, header: Header, subject: str, fix: str) -> None:
    """Raise UserError for an adapter whose base model is not a model of the Hub, so only this machine has it."""
    base = header.base_model
    if header.weights == "adapter" and (not is_repo_id(base) or Path(base).exists()):
        raise UserError(f"{subject}: an adapter of {base!r:.200}, which is not a model of the Hub; {fix}.")


def write_index(
    item_ids: list[str], codes: list[list[int]], events: list[int], catalog: pl.DataFrame, folder: Path
) -> None:
    """Write `item_index.parquet`: one row per item, in catalogue order.

    The columns are item_id, codes, training_events, title and, with the prefix `OWN_FIELD`, the other fields of the
    catalogue, which may have any name, `codes` for example.

    Args:
        item_ids: ids of the N items.
        codes: N lists of L codes.
        events: training events of each of the N items.
        catalog: N rows: item_id, title and the other text fields.
        folder: folder of the bundle.
    """
    frame = pl.DataFrame(
        {"item_id": item_ids, "codes": codes, EVENTS: events},
        schema={"item_id": pl.String, "codes": pl.List(pl.Int32), EVENTS: pl.Int64},
    )
    write_file(folder / INDEX, frame.hstack(_prefixed(catalog.drop("item_id"))).write_parquet)


def read_index(folder: Path) -> pl.DataFrame:
    """Read the frame that `write_index` wrote, N rows; the index of an older bundle comes in the same form.

    Raises:
        UserError: the file is missing or damaged.
    """
    frame = read_stored(folder / INDEX)
    expected = {"item_id", "codes", "title"}
    if not expected <= set(frame.columns) or {OWN_FIELD + name for name in expected - {"codes"}} & set(frame.columns):
        raise UserError(f"{folder / INDEX}: expected columns item_id, codes, title; found {frame.columns}.")
    if EVENTS not in frame.columns:  # items could not be added then, so all are warm
        frame = frame.with_columns(pl.lit(1, dtype=pl.Int64).alias(EVENTS))
    ours = ["item_id", "codes", EVENTS]
    texts = frame.drop(ours)
    older = not all(name.startswith(OWN_FIELD) for name in texts.columns if name != "title")
    return frame.select(ours).hstack(_prefixed(texts) if older else texts)


def catalog_frame(index: pl.DataFrame) -> pl.DataFrame:
    """The frame of the catalogue, from what `read_index` returned: item_id, title and the other fields."""
    texts = index.drop("codes", EVENTS)
    return texts.rename({name: name.removeprefix(OWN_FIELD) for name in texts.columns})


def _prefixed(texts: pl.DataFrame) -> pl.DataFrame:
    """The same columns, with `OWN_FIELD` before each name except `title`."""
    return texts.rename({name: OWN_FIELD + name for name in texts.columns if name != "title"})


PARTS = ("weights", "adapter", "tokenizer", "trie", "dense", "experts", "quantizer", "index", "other")


TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template")
"""First parts of the names of a tokenizer's files."""


NAMED = {ADAPTER: "adapter", TRIE: "trie", DENSE: "dense", INDEX: "index"} | dict.fromkeys(fused.FILES, "experts")


ADAPTER_ROWS = "trainable_tokens"
"""The part of a tensor's name that marks an adapter's token rows."""


def sizes(folder: Path) -> dict[str, int]:
    """The size in bytes of each part of the bundle in `folder`; only the files that a push publishes count.

    Returns:
        One number per name of PARTS; `total`, their sum; and `item_token_rows`, the bytes of the item tokens' rows,
        which are included in `weights` or `adapter`.

    Raises:
        UserError: the folder holds no bundle.
    """
    header = read_header(folder)
    parts = dict.fromkeys(PARTS, 0)
    for name in hub.published_files(folder):
        parts[_part(name)] += (folder / name).stat().st_size
    return {**parts, "total": sum(parts.values()), "item_token_rows": _row_bytes(folder, sum(header.level_sizes))}


def readable(count: int) -> str:
    """A number of bytes with a unit: 1023 B, 1.5 KiB, 600 MiB."""
    power = max(0, min(4, (count.bit_length() - 1) // 10))
    return f"{count / 1024**power:,.3g} {'KMGT'[power - 1]}iB" if power else f"{count} B"


def _part(name: str) -> str:
    place, _, file = name.rpartition("/")
    if place == QUANTIZER:
        return "quantizer"
    if name in NAMED:
        return NAMED[name]
    if name.endswith(".safetensors"):
        return "weights"
    return "tokenizer" if not place and file.startswith(TOKENIZER) else "other"


def _row_bytes(folder: Path, tokens: int) -> int:
    """Bytes of the item tokens' rows.

    An adapter stores these rows as tensors of their own. In a model they are a part of each matrix with one row per
    token of the vocabulary.
    """
    from tokenizers import Tokenizer

    tensors = [tensor for path in sorted(folder.glob("*model*.safetensors")) for tensor in _tensors(path)]
    if any(ADAPTER_ROWS in name for name, _, _ in tensors) or not tensors:
        return sum(size for name, _, size in tensors if ADAPTER_ROWS in name)
    rows = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    return sum(tokens * size // rows for _, shape, size in tensors if len(shape) == 2 and shape[0] == rows)


def _tensors(path: Path) -> Iterator[tuple[str, list[int], int]]:
    """Name, shape and bytes of every tensor of a weight file, read from the header of the file."""
    if _part(path.name) not in ("weights", "adapter"):
        return
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        head = file.read(min(length, path.stat().st_size))
    try:
        for name, tensor in json.loads(head).items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                yield name, tensor["shape"], end - begin
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a safetensors file: {error}.") from None
