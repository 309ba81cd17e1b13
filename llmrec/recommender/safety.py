"""What a bundle by a stranger may contain: looked at before transformers and peft read it.

They run no code of a checkpoint unless told to. What is left, and refused here: files that send them to other weights,
to weights in pickle, to compiled kernels, or through parts of peft that no bundle of ours uses.
"""

import json
from pathlib import Path
from typing import Any, Literal

from llmrec.errors import UserError

MODEL = "model.safetensors"


ADAPTER = "adapter_model.safetensors"


MODEL_CONFIG = "config.json"


ADAPTER_CONFIG = "adapter_config.json"


ELSEWHERE = ("transformers_weights", "attn_implementation")
"""Keys of config.json that name another file of weights, or a repository of kernels."""


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
    for key in _keys(folder / MODEL_CONFIG):
        if key in ELSEWHERE:
            raise UserError(f"{folder / MODEL_CONFIG}: {key} is not allowed in a bundle; delete it.")


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


def _keys(path: Path) -> set[str]:
    """The keys of a JSON file's objects, however deep."""
    keys: set[str] = set()
    left: list[Any] = [read_object(path)]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            keys |= value.keys()
            left += value.values()
        elif isinstance(value, list):
            left += value
    return keys


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
