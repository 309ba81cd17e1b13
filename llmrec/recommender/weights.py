"""Save and load the weights of a bundle in the files of transformers and peft. Loading accepts no wrong tensor.

Weights on the CPU are used where the file is mapped into memory, so that processes that load one bundle share them.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llmrec.atomic import write_file
from llmrec.console import get_logger
from llmrec.errors import UserError
from llmrec.model.architecture import encoder_of, start_token
from llmrec.model.base import ALIGNMENT, check_finite, load_model, own_memory
from llmrec.model.gguf import is_gguf
from llmrec.model.layers import cut_layers
from llmrec.model.quantized import fewer_bits, missing_for_bits
from llmrec.recommender.bundle import HEADER, Header
from llmrec.recommender.safety import ADAPTER, check_parts
from llmrec.resources import first_line, loading_trouble

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


log = get_logger(__name__)
WEIGHTS = "*model*.safetensors"
"""The files with the weights of a model or of an adapter."""


def save_weights(model: "PreTrainedModel | PeftModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write the weights (or the adapter) and the tokenizer in the files of transformers and peft."""
    from transformers import GenerationConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # With the base model's sampling settings, a plain `generate` would sample; llmrec's answers come from beam search.
    base.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=None if encoder_of(base) is None else start_token(base),
        do_sample=False,
    )
    card = folder / "README.md"
    own = card.read_bytes() if card.exists() else None
    for path in folder.glob(WEIGHTS):  # this process or a server may have mapped it: it must not be written in place
        path.unlink()
    # For a loaded PEFT model, peft would also save the whole embedding matrices.
    model.save_pretrained(folder, **({"save_embedding_layers": False} if base is not model else {}))
    for path in folder.glob(WEIGHTS):
        _align(path)
    tokenizer.save_pretrained(folder)
    card.unlink(missing_ok=True)  # the card that peft wrote; llmrec writes one from the run's metrics
    if own is not None:
        card.write_bytes(own)


def _align(path: Path) -> None:
    """Lengthen the header of a safetensors file with spaces, so that its tensors begin at a multiple of 64 bytes.

    Tensors that begin elsewhere are copied when they are loaded: see `own_memory`.
    """
    with path.open("rb") as old:
        length = int.from_bytes(old.read(8), "little")
        head = old.read(length) + b" " * (-(8 + length) % ALIGNMENT)

        def write(new: BinaryIO) -> None:
            new.write(len(head).to_bytes(8, "little") + head)
            shutil.copyfileobj(old, new, 2**22)

        if len(head) > length:
            write_file(path, write)


def load_weights(
    folder: Path,
    header: Header,
    trust_remote_code: bool = False,
    base: str | Path | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> "tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]":
    """Load the model of a bundle, with its adapter if it has one, and the tokenizer.

    Tensors on the CPU begin at multiples of 64 bytes (`own_memory`).

    Args:
        folder: the bundle.
        header: the content of its `llmrec.json`.
        trust_remote_code: run the Python code that comes with the model.
        base: the base model of the adapter, as a path or Hub id. Default: the base model that the bundle names, if it
            is on this machine, as a folder or in the Hub's cache. A name in a bundle is never downloaded.
        device_map: how accelerate spreads the layers over GPUs, such as auto; None: all are loaded on the CPU.

    Raises:
        UserError: the files can't be loaded, the adapter's base model can't be found, or a tensor is missing,
            unexpected, of another shape, holds NaN or infinity, or does not fit on the devices of the map.
    """
    check_parts(folder, header.weights, header.base_model)
    try:
        placed = {} if device_map is None else {"device_map": device_map}
        return _load(folder, header, base, {"trust_remote_code": trust_remote_code}, placed)
    except UserError:
        raise
    except Exception as error:  # damaged files make transformers, peft, tokenizers and safetensors raise many types
        if "custom code" in str(error) and not trust_remote_code:
            raise UserError(
                f"{folder}: the bundle can't be loaded: its model brings Python code of its own; give "
                "--trust-remote-code if you trust its author."
            ) from None
        raise UserError(
            f"{folder}: the bundle can't be loaded (base model {header.base_model}): {first_line(error)}"
        ) from None


def _load(
    folder: Path, header: Header, base: str | Path | None, options: dict[str, Any], placed: dict[str, Any]
) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    if sum(header.level_sizes) > len(tokenizer):  # checked before so many names are made
        raise ValueError(f"{sum(header.level_sizes)} item tokens in {HEADER}, {len(tokenizer)} tokens in all")
    if not isinstance(tokenizer.model_max_length, int | float):  # prompt lengths are compared with it
        raise ValueError(f"model_max_length {tokenizer.model_max_length!r} in tokenizer_config.json, expected a number")
    if header.weights == "model":
        if base is not None:
            raise UserError(f"--base {base}: {folder} is a whole model; only an adapter has a base; leave it out.")
        model: Any = _complete(folder, f"{folder}", options | placed)
    else:
        options = options | _bits(folder, header.bits) | placed
        model = _with_adapter(_adapter_base(folder, header, base, len(tokenizer), options), folder)
    if absent := sum(parameter.is_meta for parameter in model.parameters()):
        raise UserError(
            f"--device-map: {absent} tensors do not fit on the GPUs and would stay in the CPU's memory or on disk; use "
            "more or larger GPUs, or train on a base of fewer bits (--base.bits)."
        )
    own_memory(model)
    check_finite(model, f"{folder}")
    return model, tokenizer


def _adapter_base(
    folder: Path, header: Header, base: str | Path | None, n_tokens: int, options: dict[str, Any]
) -> "PreTrainedModel":
    """The base model of an adapter, with `n_tokens` token rows: `base`, or else the model that the bundle names."""
    name = header.base_model if base is None else base
    where = _on_this_machine(header.base_model) if base is None else base
    if where is None:
        raise UserError(
            f"--model {folder}: an adapter of the base model {name}: it is not on this machine, and a name in a bundle "
            "is not followed to the Hub; name it with --base, as a path or Hub id."
        )
    try:
        model = _complete(where, f"{folder}: its base model {name}", options)
    except OSError as error:  # transformers raises it for a model that does not exist
        raise UserError(f"--base {name}: can't be loaded: {loading_trouble(name, error)}") from None
    cut_layers(model, header.keep_layers, f"{folder / HEADER}: keep_layers {header.keep_layers}")
    model.resize_token_embeddings(n_tokens, mean_resizing=False)
    return model


def _bits(folder: Path, bits: int) -> dict[str, Any]:
    """Arguments of `from_pretrained` for the bits per weight that an adapter's base was trained with, if they can be
    had here; a warning says if not."""
    if bits == 32:
        return {}
    if (missing := missing_for_bits()) is not None:
        log.warning(
            "%s: its adapter was trained on a base of %d bits per weight, which is loaded whole: %s",
            folder,
            bits,
            missing,
        )
        return {}
    return fewer_bits(bits)


def _on_this_machine(name: str) -> Path | None:
    """The folder or GGUF file `name`, or the folder of model `name` in the Hub's cache; None if there is neither."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(name).is_dir() or is_gguf(name):
        return Path(name)
    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # a name that no repository can have
        return None
    return Path(config).parent if isinstance(config, str) else None


def _complete(name: str | Path, subject: str, options: dict[str, Any]) -> "PreTrainedModel":
    """Load a language model; raise UserError unless the checkpoint has exactly the model's tensors."""
    # Wrong shapes are let through here, and `_require_same` names them below.
    model, info = load_model(name, use_safetensors=True, ignore_mismatched_sizes=True, **options)
    other = [found[0] if isinstance(found, tuple) else found for found in info["mismatched_keys"]]
    _require_same(subject, info["missing_keys"], info["unexpected_keys"], other)
    return model


def _with_adapter(base: "PreTrainedModel", folder: Path) -> "PeftModel":
    """`base` with the adapter in `folder`; raise UserError unless its file has exactly the adapter's tensors."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    from llmrec.model.rows import use_token_rows

    model = PeftModel.from_pretrained(base, folder, ignore_mismatched_sizes=True)
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    wanted = {name: list(tensor.shape) for name, tensor in saved.items()}
    with safe_open(folder / ADAPTER, "pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a dict
    other = [name for name in wanted.keys() & found.keys() if wanted[name] != found[name]]
    _require_same(f"{folder / ADAPTER}", wanted.keys() - found.keys(), found.keys() - wanted.keys(), other)
    use_token_rows(model)
    return model


def _require_same(subject: str, missing: Iterable[Any], unexpected: Iterable[Any], other: Iterable[Any]) -> None:
    """Raise UserError if any tensor is missing, unexpected or of another shape."""
    for what, names in (("has another shape of", other), ("lacks", missing), ("has the unknown", unexpected)):
        if found := sorted(map(str, names)):
            raise UserError(
                f"{subject}: {what} tensor {found[0]:.120} ({len(found)} such tensors); the weights belong to another "
                "model, or are damaged."
            )
