"""Checks the files of a bundle from an untrusted author, before transformers and peft read them.

By default, these libraries run no code of a checkpoint. Other dangers remain, and this module refuses them: files that
make the libraries load weights from elsewhere, weights in pickle files or compiled kernels, or use parts of peft that
no bundle of llmrec uses.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from llmrec.errors import UserError

MODEL = "model.safetensors"


ADAPTER = "adapter_model.safetensors"


MODEL_CONFIG = "config.json"


ADAPTER_CONFIG = "adapter_config.json"


ELSEWHERE = ("transformers_weights", "quantization_config")
"""Keys of config.json that name another file of weights, or a library that unpacks them."""
ATTENTION = {None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}
"""Values of attn_implementation; others name a repository of kernels."""
FOLDERS = (".", "quantizer", "prompts")
"""The folders that hold a bundle's files; their subfolders hold none."""
MOST_BYTES = {".json": 2**28, ".jinja": 2**16, ".yaml": 2**20, ".txt": 2**26, ".md": 2**22}
"""Suffix of a text file of a bundle -> its largest size in bytes."""


FREE = {
    "base_model_name_or_path",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "peft_version",
    "r",
    "target_modules",
    "task_type",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
}
"""Keys of adapter_config.json that a training of llmrec sets. All others must have peft's default."""


def check_parts(folder: Path, weights: Literal["model", "adapter"], base_model: str) -> None:
    """Check the files that hold or name weights.

    Args:
        folder: the bundle.
        weights: field `weights` of `llmrec.json`.
        base_model: field `base_model` of `llmrec.json`.

    Raises:
        UserError: weights are missing or are not safetensors, or a file refers to files outside the bundle.
    """
    if weights == "adapter":
        _require(folder, ADAPTER, ADAPTER_CONFIG)
        _check_adapter(folder / ADAPTER_CONFIG, base_model)
        return
    index = folder / f"{MODEL}.index.json"
    _require(folder, MODEL_CONFIG, *([] if index.exists() else [MODEL]))
    if (folder / ADAPTER_CONFIG).exists():
        raise UserError(f"{folder}: {ADAPTER_CONFIG} beside a whole model, as llmrec.json says it is; delete one.")
    if index.exists():
        _check_index(index)
    for key, value in _entries(folder / MODEL_CONFIG):
        if key in ELSEWHERE:
            raise UserError(f"{folder / MODEL_CONFIG}: {key} is not allowed in a bundle; delete it.")
        if key.strip("_").startswith("attn_implementation"):
            _check_attention(folder / MODEL_CONFIG, key, value)


def check_files(folder: Path) -> None:
    """Check, before any file is opened, that a bundle has only plain files of a plausible size, and no links.

    The links of the Hub's cache are allowed: a snapshot there is a folder of links to the stored files.

    Raises:
        UserError: there is a link, a pipe, a device or a folder instead of a file, or a text file is too large.
    """
    try:
        for place in FOLDERS:
            inside = folder / place
            if place != "." and inside.is_symlink():
                raise UserError(f"{inside}: is a link, expected a folder; a bundle holds no links.")
            for entry in os.scandir(inside) if inside.is_dir() else ():
                _check_entry(Path(entry.path), folder, place)
    except OSError as error:
        raise UserError(f"{folder}: can't be read: {error.strerror}.") from None


def _check_entry(path: Path, folder: Path, place: str) -> None:
    if path.is_symlink() and not _is_cached(path, folder):
        raise UserError(f"{path}: is a link to {os.readlink(path)}; a bundle holds no links: copy what it leads to.")
    state = path.stat()
    if stat.S_ISDIR(state.st_mode) and place == ".":
        return
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f"{path}: is no plain file; a bundle holds plain files only: delete it.")
    most = MOST_BYTES.get(path.suffix)
    if most is not None and state.st_size > most:
        raise UserError(f"{path}: {state.st_size:,} bytes, expected at most {most:,} of such a file.")


def _is_cached(path: Path, folder: Path) -> bool:
    """Whether a link is one of the links in the Hub's cache: REPO/snapshots/REVISION/... -> REPO/blobs/HASH."""
    root = folder.absolute()
    if root.parent.name != "snapshots":
        return False
    blobs = root.parent.parent / "blobs"
    return path.resolve().parent == blobs.resolve()


def read_object(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        UserError: the file can't be read, is not JSON, or holds something other than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {type(content).__name__}, expected a JSON object.")
    return content


def _require(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; the weights of a bundle are safetensors, nothing else.")


def _check_index(path: Path) -> None:
    """Raise UserError unless all shards are safetensors files in the folder of the index."""
    shards = read_object(path).get("weight_map")
    for name in shards.values() if isinstance(shards, dict) else [shards]:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{path}: found the shard {name!r:.80}, expected *.safetensors in the same folder.")


def _check_attention(path: Path, key: str, value: Any) -> None:
    """Raise UserError unless `value` is a known attention, or a dictionary with one for each part of a model."""
    for name in value.values() if isinstance(value, dict) else [value]:
        if not (name is None or isinstance(name, str)) or name not in ATTENTION:
            known = ", ".join(sorted(filter(None, ATTENTION)))
            raise UserError(f"{path}: {key} {name!r:.80}, expected one of {known}.")


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """All keys and values of the objects in a JSON file, at any depth."""
    left: list[Any] = [read_object(path)]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield from value.items()
            left += value.values()
        elif isinstance(value, list):
            left += value


def _check_adapter(path: Path, base_model: str) -> None:
    """Raise UserError unless this is a LoRA adapter for `base_model`, with peft's defaults for all keys but `FREE`."""
    from dataclasses import MISSING, fields

    from peft import LoraConfig

    found = read_object(path)
    if found.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type {found.get('peft_type')!r:.80}, expected LORA.")
    base = found.get("base_model_name_or_path")
    if base != base_model:
        raise UserError(f"{path}: an adapter of {base!r:.80}, but llmrec.json says {base_model!r}.")
    for field in fields(LoraConfig):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        # An empty container equals None here, as peft may write either.
        if field.name in found and field.name not in FREE and (found[field.name] or None) != (default or None):
            raise UserError(f"{path}: {field.name} {found[field.name]!r:.80}, but adapters of a bundle don't set it.")
