"""The bundle: an ordinary Hugging Face checkpoint with what llmrec needs beside it.

Only safetensors, JSON, YAML and parquet; transformers and peft load their parts without llmrec.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import polars as pl

from llmrec.decode.config import Scoring
from llmrec.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCHEMA = 1
HEADER = "llmrec.json"
INDEX = "item_index.parquet"
TRIE = "trie.safetensors"
QUANTIZER = "quantizer"
PROMPTS = "prompts"


@dataclass(frozen=True)
class Header:
    """`llmrec.json`.

    Attributes:
        schema: of this file.
        llmrec: version that wrote it.
        levels: codes per item, the dedup level included.
        level_sizes: codes of each level.
        token_prefix: of the item tokens' names.
        scoring: how answers are scored (see `DecodeConfig`): what the bundle was last evaluated with, and what it
            decodes with unless told otherwise.
        base_model: what the training started from.
        weights: model (whole weights) or adapter (PEFT adapter with the item tokens' rows; needs the base).
        max_history: items of a history that a prompt shows.
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


def write_header(header: Header, folder: Path) -> None:
    """Write `llmrec.json`, whole or not at all."""
    temporary = folder / f".{HEADER}.tmp"
    temporary.write_text(json.dumps(asdict(header), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / HEADER)


def record_scoring(folder: Path, scoring: Scoring) -> None:
    """Write into `llmrec.json` what the bundle in `folder` was evaluated with."""
    write_header(replace(read_header(folder), scoring=scoring), folder)


def read_header(folder: Path) -> Header:
    """Read and check `llmrec.json`.

    Raises:
        UserError: no such file, not JSON, or of another schema.
    """
    path = folder / HEADER
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: no llmrec bundle there ({HEADER} is missing).") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}.") from None
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise UserError(f"{path}: schema {found}, but this llmrec reads schema {SCHEMA}.")
    try:
        header = Header(**raw)
    except TypeError as error:
        raise UserError(f"{path}: {error}.") from None
    if header.scoring not in get_args(Scoring):
        raise UserError(f"{path}: scoring {header.scoring!r}, expected one of {', '.join(get_args(Scoring))}.")
    return header


def locate(name: str | Path) -> Path:
    """The folder of a bundle: a local one, or the snapshot of a Hub repository.

    Raises:
        UserError: neither.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(name).count("/") != 1:
        raise UserError(f"--model {name}: no such folder, and not a Hub id (org/name).")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                str(name),
                allow_patterns=["*.safetensors", "*.json", "*.parquet", "*.yaml", "*.txt", "*.jinja"],
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--model {name}: no such folder, and the Hub gave: {reason}") from None


def save_weights(model: "PreTrainedModel | PeftModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Weights (or adapter) and tokenizer, as transformers and peft write them."""
    from transformers import GenerationConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Sampling settings of the base would turn a plain `generate` into dice; the answers are beams.
    base.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's card; ours is written from the run's metrics


def load_weights(
    folder: Path, header: Header, trust_remote_code: bool
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Model and tokenizer of a bundle, the adapter applied when it is one.

    Raises:
        UserError: the files can't be loaded, or the adapter's base can't be found.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if header.weights == "model":
            return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust_remote_code), tokenizer
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(header.base_model, trust_remote_code=trust_remote_code)
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return PeftModel.from_pretrained(base, folder), tokenizer
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: the bundle can't be loaded (base model {header.base_model}): {reason}") from None


def write_index(item_ids: list[str], codes: list[list[int]], fields: pl.DataFrame, folder: Path) -> None:
    """`item_index.parquet`: item_id, codes, title, searchable fields; one row per item, in catalogue order."""
    frame = pl.DataFrame(
        {"item_id": item_ids, "codes": codes}, schema={"item_id": pl.String, "codes": pl.List(pl.Int32)}
    )
    temporary = folder / f".{INDEX}.tmp"
    frame.hstack(fields.drop("item_id")).write_parquet(temporary)
    os.replace(temporary, folder / INDEX)


def read_index(folder: Path) -> pl.DataFrame:
    """The frame that `write_index` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        frame = pl.read_parquet(folder / INDEX)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{folder / INDEX}: can't be read: {error}") from None
    if not {"item_id", "codes", "title"} <= set(frame.columns):
        raise UserError(f"{folder / INDEX}: expected columns item_id, codes, title; found {frame.columns}.")
    return frame
