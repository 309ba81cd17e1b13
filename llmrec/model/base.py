"""The base language model: load one by path or Hub id, convert a GGUF file, or make a small random one."""

import copy
import ctypes
import mmap
import struct
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmrec.atomic import put_in_place, replacing, require_ours, usual_modes
from llmrec.console import get_logger
from llmrec.device import resolve_device, resolve_dtype
from llmrec.errors import UserError
from llmrec.manifest import sha256
from llmrec.model.architecture import unwrapped
from llmrec.model.config import BaseConfig
from llmrec.model.gguf import complete_tokenizer, is_gguf, location, unpacking
from llmrec.model.layers import cut_layers
from llmrec.model.quantized import fewer_bits
from llmrec.resources import loading_trouble

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = get_logger(__name__)
ALIGNMENT = 64
"""Alignment in bytes of the tensors that torch's own allocator creates."""
SOURCE = "gguf.sha256"
"""File of a converted checkpoint: the SHA-256 and name of its GGUF file, as sha256sum writes them."""
MADV_PAGEOUT = 21  # Linux 5.4 and newer; an older kernel returns an error, which is ignored


def load_base(
    name: str | Path,
    trust_remote_code: bool = False,
    bits: int = 32,
    keep_layers: int = 0,
    dtype: torch.dtype = torch.float32,
    chat_template: bool = True,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load any causal language model or encoder-decoder and its tokenizer.

    Args:
        name: path or Hub id, or a GGUF file.
        trust_remote_code: run the Python code of the checkpoint.
        bits: 32: `dtype`; 8 or 4: quantize the linear layers to this many bits per weight.
        keep_layers: number of decoder layers to keep, the first ones; 0: all.
        dtype: of the weights; float32 if they will be trained.
        chat_template: false: the tokenizer comes without its chat template.

    Returns:
        The model and its tokenizer.

    Raises:
        UserError: the path or Hub id can't be loaded; `bits` is below 32 for a GGUF file, or without what
            `fewer_bits` needs; or the model can't be cut to `keep_layers` layers.
    """
    from safetensors import SafetensorError

    if bits < 32 and is_gguf(name):
        raise UserError(f"--base.bits {bits}: {name} is a GGUF file, whose weights llmrec unpacks; set it to 32.")
    tokenizer = load_tokenizer(name, trust_remote_code, chat_template)
    fewer = fewer_bits(bits) if bits < 32 else {}
    try:
        # An adapter keeps the name of its base, which must be valid in any working directory.
        place = Path(name).resolve() if Path(name).exists() else name
        model, info = load_model(place, trust_remote_code=trust_remote_code, dtype=dtype, **fewer)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = loading_trouble(name, error)
        raise UserError(f"--base.model {name}: can't be loaded as a language model: {reason}") from None
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"--base.model {name}: the checkpoint lacks {len(missing)} tensors of {type(model).__name__}, such as "
            f"{missing[0]}; expected the weights of a language model."
        )
    cut_layers(model, keep_layers, f"--base.keep_layers {keep_layers}")
    own_memory(model)
    return model, tokenizer


def weight_dtype(config: BaseConfig, frozen: bool) -> torch.dtype:
    """The type in which a base is loaded: see `BaseConfig.dtype`.

    Args:
        config: of the base.
        frozen: whether training will leave the weights as they are.
    """
    if config.dtype == "auto" and not frozen:
        return torch.float32
    return resolve_dtype(config.dtype, resolve_device("auto"))


def configured_base(
    name: str | Path, config: BaseConfig, frozen: bool
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """As `load_base`, with what `config` says; `frozen` as for `weight_dtype`."""
    dtype = weight_dtype(config, frozen)
    return load_base(name, config.trust_remote_code, config.bits, config.keep_layers, dtype, config.chat_template)


def load_model(name: str | Path, **options: Any) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """A causal language model or an encoder-decoder, and what transformers says about its loading (`missing_keys` and
    others).

    Args:
        name: path or Hub id, or a GGUF file.
        options: arguments of `from_pretrained`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    place, where = location(name)
    config = AutoConfig.from_pretrained(place, trust_remote_code=options.get("trust_remote_code", False), **where)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model, info = kind.from_pretrained(place, output_loading_info=True, **{**where, **unpacking(name), **options})
    if is_gguf(name):  # adapters record this name
        model.name_or_path = model.config._name_or_path = str(name)
    return model, info


def skeleton(name: str, trust_remote_code: bool = False, keep_layers: int = 0) -> "PreTrainedModel":
    """The model of a path or Hub id, on the meta device. It reads only `config.json` of the checkpoint.

    Args:
        name: path or Hub id, or a GGUF file, of which only the header is read.
        trust_remote_code: run code that comes with the checkpoint.
        keep_layers: number of decoder layers to keep, the first ones; 0: all.

    Raises:
        UserError: `config.json` can't be read or describes no language model, or the model can't be cut to
            `keep_layers` layers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    place, where = location(name)
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code, **where)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            model = kind.from_config(
                config, trust_remote_code=trust_remote_code, dtype=torch.float32, attn_implementation="eager"
            )
        _halve_experts(model)
    except (OSError, ValueError, KeyError) as error:
        trouble = loading_trouble(name, error)
        raise UserError(f"--base.model {name}: its config.json can't be had: {trouble}") from None
    cut_layers(model, keep_layers, f"--base.keep_layers {keep_layers}")
    return model


def on_meta(model: Any) -> "PreTrainedModel":
    """A model of the same shape as `model` on the meta device, in float32 and without its adapter, if it has one."""
    inner = unwrapped(model)
    config = copy.deepcopy(inner.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        bare: PreTrainedModel = type(inner)._from_config(config, dtype=torch.float32, attn_implementation="eager")
    _halve_experts(bare)
    return bare


def _halve_experts(model: "PreTrainedModel") -> None:
    """On the meta device torch multiplies the stacked matrices of experts in bfloat16 only (torch.grouped_mm)."""
    if not model._can_set_experts_implementation():  # multiplied otherwise, as in Llama 4
        return
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dim() == 3 and "expert" in type(module).__name__.lower():
                setattr(module, name, nn.Parameter(parameter.to(torch.bfloat16)))


def convert_gguf(path: Path, folder: Path, expected: str | None = None) -> None:
    """Write the model of a GGUF file as an ordinary checkpoint: float32 safetensors, tokenizer, chat template.

    Args:
        path: the GGUF file.
        folder: where the checkpoint goes; must not exist, or be empty.
        expected: SHA-256 of the file, in hexadecimal digits; None: any file.

    Raises:
        UserError: the folder holds something, the file has another SHA-256, or it can't be loaded.
    """
    require_ours(folder, ())
    if expected is not None and (found := sha256(path)) != expected:
        raise UserError(f"{path}: SHA-256 is {found}, expected {expected}; delete the file and get it again.")
    model, tokenizer = load_base(path)
    with replacing(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        (new / SOURCE).write_text(f"{sha256(path)}  {path.name}\n")
        usual_modes(new)
        put_in_place(new, folder)


def own_memory(model: nn.Module) -> None:
    """Copy each CPU tensor of `model` that does not start on a 64-byte boundary into aligned memory, in place.

    safetensors maps a file into memory, where a tensor can start at any offset. Matrix kernels sum unaligned tensors
    in another order, so the outputs of a reloaded model would differ from those of the saved one in the last bits.
    Tensors are copied one at a time, and the pages of the file are released after each; otherwise the weights would
    occupy memory twice.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            mapped = tensor.data
            tensor.data = mapped.clone()
            _give_back(mapped.data_ptr(), mapped.numel() * mapped.element_size())


def _give_back(address: int, size: int) -> None:
    """Let Linux page out the whole pages inside a range of memory (`size` in bytes); their content does not change."""
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if sys.platform == "linux" and length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), MADV_PAGEOUT)


def check_finite(model: nn.Module, subject: str) -> None:
    """Check that no floating-point tensor of `model` holds NaN or infinity.

    Raises:
        UserError: a tensor does; the message begins with `subject` and names the tensor.
    """
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
            raise UserError(f"{subject}: tensor {name} holds NaN or infinity; the weights are damaged.")


def load_tokenizer(
    name: str | Path, trust_remote_code: bool = False, chat_template: bool = True
) -> "PreTrainedTokenizerBase":
    """The tokenizer of any language model; with `chat_template` false, without its chat template.

    Raises:
        UserError: the path or Hub id can't be loaded, or has no fast tokenizer.
    """
    from transformers import AutoTokenizer

    place, where = location(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code, **where)
        if is_gguf(name):
            complete_tokenizer(tokenizer, Path(name))
    except (OSError, ValueError, KeyError, struct.error) as error:  # struct.error: a GGUF file that ends too early
        reason = loading_trouble(name, error)
        raise UserError(f"--base.model {name}: its tokenizer can't be loaded: {reason}") from None
    # If there are no tokenizer files, transformers makes an empty tokenizer, which finds no token in any text.
    if not tokenizer.is_fast or not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise UserError(f"--base.model {name}: has no fast tokenizer (tokenizer.json); save one beside it.")
    if not chat_template:
        tokenizer.chat_template = None
    return tokenizer


def make_base(config: BaseConfig, texts: Sequence[str]) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A small random model with a byte-level BPE tokenizer trained on `texts`.

    Args:
        config: architecture and sizes.
        texts: the item texts and prompts on which the tokenizer is trained.

    Returns:
        A standard Qwen3, Llama or T5 model with tied embeddings, and its tokenizer.

    Raises:
        UserError: `config.keep_layers` is set, which is for pretrained models.
    """
    if config.keep_layers:
        raise UserError(f"--base.keep_layers {config.keep_layers} cuts a pretrained model; name one, or set it to 0.")
    tokenizer = _make_tokenizer(texts, config.vocabulary, config.context)
    torch.manual_seed(config.seed)
    model = _make_t5(config, tokenizer) if config.architecture == "t5" else _make_decoder(config, tokenizer)
    log.info("Made a %s base of %.1f million weights", config.architecture, model.num_parameters() / 1e6)
    return model, tokenizer


def _make_decoder(config: BaseConfig, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    llama = config.architecture == "llama"
    make_config, make_model = (LlamaConfig, LlamaForCausalLM) if llama else (Qwen3Config, Qwen3ForCausalLM)
    return make_model(
        make_config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            # 8/3 of hidden_size, rounded to a multiple of 64: as many weights as an ungated MLP of 4 * hidden_size
            intermediate_size=config.feed_forward or max(64, round(config.hidden_size * 8 / 3 / 64) * 64),
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads // 2,
            head_dim=config.head_size or config.hidden_size // config.heads,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _make_t5(config: BaseConfig, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    """The first T5 (arXiv 1910.10683), whose feed-forward blocks are ungated; the padding token starts each answer."""
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=config.hidden_size,
            d_kv=config.head_size or config.hidden_size // config.heads,
            d_ff=config.feed_forward or 4 * config.hidden_size,
            num_layers=config.layers,
            num_heads=config.heads,
            dropout_rate=0.0,  # `train.dropout` sets it while the model trains
            n_positions=config.context,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )


def _make_tokenizer(texts: Sequence[str], size: int, context: int) -> "PreTrainedTokenizerBase":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|pad|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        padding_side="left",
        model_max_length=context,
    )
