"""What a bundle by a stranger may contain: looked at before transformers and peft read it.

They run no code of a checkpoint unless told to. What is left, and refused here: files that send them to other weights,
to weights in pickle, to compiled kernels, or through parts of peft that no bundle of ours uses.
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
"""Where a bundle has files: in its own folder and these, nothing deeper."""
MOST_BYTES = {".json": 2**28, ".jinja": 2**16, ".yaml": 2**20, ".txt": 2**26, ".md": 2**22}
"""Size of a bundle's text files at most, by how their names end."""


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
"""Keys of adapter_config.json that a training sets; every other has peft's default."""


def check_parts(folder: Path, weights: Literal["model", "adapter"], base_model: str) -> None:
    """Check the files that hold or name weights; `weights` and `base_model` as the header says.

    Raises:
        UserError: weights that are missing or no safetensors, or a file that refers to anything outside the bundle.
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
    """Check what kind of files a bundle consists of, before any is opened: plain ones of a plausible size, no links.

    The snapshot of a repository in the Hub's cache is a folder of links to the files that the Hub's client stored.

    Raises:
        UserError: a link, a pipe, a device or a folder in place of a file, or a text file that is too large.
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
    """Whether a link is one of the Hub's cache: REPO/snapshots/REVISION/... -> REPO/blobs/HASH."""
    root = folder.absolute()
    if root.parent.name != "snapshots":
        return False
    blobs = root.parent.parent / "blobs"
    return path.resolve().parent == blobs.resolve()


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        UserError: it can't be read, or holds something else.
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
    """Shards are safetensors beside their index."""
    shards = read_object(path).get("weight_map")
    for name in shards.values() if isinstance(shards, dict) else [shards]:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{path}: found the shard {name!r:.80}, expected *.safetensors in the same folder.")


def _check_attention(path: Path, key: str, value: Any) -> None:
    """Attention by name, one for all parts of a model or one for each."""
    for name in value.values() if isinstance(value, dict) else [value]:
        if not (name is None or isinstance(name, str)) or name not in ATTENTION:
            known = ", ".join(sorted(filter(None, ATTENTION)))
            raise UserError(f"{path}: {key} {name!r:.80}, expected one of {known}.")


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Keys and values of a JSON file's objects, however deep."""
    left: list[Any] = [read_object(path)]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield from value.items()
            left += value.values()
        elif isinstance(value, list):
            left += value


def _check_adapter(path: Path, base_model: str) -> None:
    """A LoRA adapter of the header's base, and no setting that a training of ours leaves alone."""
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
        # An empty container or None: peft writes the one for the other.
        if field.name in found and field.name not in FREE and (found[field.name] or None) != (default or None):
            raise UserError(f"{path}: {field.name} {found[field.name]!r:.80}, but adapters of a bundle don't set it.")
