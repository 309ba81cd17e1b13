"""GGUF files, the format of llama.cpp, as base models. transformers unpacks their weights into an ordinary model.

model, tokenizer = load_base("SmolLM2-135M-Instruct.Q4_1.gguf")
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec.errors import UserError
from llmrec.resources import hub_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUFFIX = ".gguf"
SINGLE_DIGITS = {"smollm"}
"""Values of tokenizer.ggml.pre whose tokenizer makes a token of each digit; transformers takes them for GPT-2's."""


def is_gguf(name: str | Path) -> bool:
    """Whether `name` is a GGUF file on this machine."""
    return Path(name).suffix.lower() == SUFFIX and Path(name).is_file()


def location(name: str | Path) -> tuple[str | Path, dict[str, Any]]:
    """What `from_pretrained` of transformers takes for a model: its first argument, and keyword arguments.

    Args:
        name: path or Hub id, or a GGUF file.

    Raises:
        UserError: a GGUF file, but the package gguf is not installed.
    """
    if not is_gguf(name):
        return name, hub_options(name)
    if find_spec("gguf") is None:
        raise UserError(
            f"--base.model {name}: a GGUF file needs the package gguf, which is not installed; "
            "pip install 'llmrec[gguf]'."
        )
    path = Path(name)
    return path.parent, {"gguf_file": path.name, "local_files_only": True}


def unpacking(name: str | Path) -> dict[str, Any]:
    """More arguments for the weights: those of a GGUF file are unpacked, so that they can be trained and saved."""
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True)} if is_gguf(name) else {}


def complete_tokenizer(tokenizer: "PreTrainedTokenizerBase", path: Path) -> None:
    """Set what transformers does not read from the GGUF file `path`: the longest sequence, and how digits are split."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf import read_gguf_metadata

    found, _ = read_gguf_metadata(str(path))
    tokenizer.model_max_length = found[f"{found['general.architecture']}.context_length"]
    if found.get("tokenizer.ggml.pre") in SINGLE_DIGITS:
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
