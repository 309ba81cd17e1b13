"""What differs between the language models of transformers: where their layers are and how they make logits."""

import inspect
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from llmrec.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_SCALES = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}
"""Names of a factor of the logits in a model's configuration (Cohere; Falcon-H1; Granite), each with its exponent."""

SCALE_IF_TIED = ("umt5", "switch_transformers")
"""Model types that multiply hidden states by hidden_size ** -0.5 if their embeddings are tied. Other types of the T5
family do so if their configuration has `scale_decoder_outputs`."""

LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names of a soft cap c of the logits, c * tanh(logits / c), in a configuration (Gemma, RecurrentGemma, xLSTM)."""


def unwrapped(model: Any) -> "PreTrainedModel":
    """The model inside a PEFT model; its layers contain the adapter. Any other model itself."""
    inner: PreTrainedModel = getattr(model, "get_base_model", lambda: model)()
    return inner


def decoder_of(model: "PreTrainedModel") -> nn.Module:
    """The part of a language model that makes hidden states from tokens: all of it but the output head and an encoder.

    In an encoder-decoder it reads a start token and the answer; the encoder reads the prompt.
    """
    if model.config.is_encoder_decoder:
        decoder: nn.Module = model.get_decoder()
        return decoder
    if model.base_model is not model:
        return model.base_model
    inner: nn.Module = model.model  # Llama 4 names its prefix after another class
    return inner


def encoder_of(model: "PreTrainedModel") -> nn.Module | None:
    """The part of an encoder-decoder, such as T5, that reads the prompt; None for a decoder-only model."""
    return model.get_encoder() if model.config.is_encoder_decoder else None


def says_encoder_decoder(folder: Path) -> bool:
    """Whether the checkpoint in `folder` is an encoder-decoder, by its config.json; False if that can't be read."""
    try:
        return bool(json.loads((folder / "config.json").read_text()).get("is_encoder_decoder"))
    except (OSError, ValueError, AttributeError):  # no such file, no JSON, no object: loading the model names it
        return False


def start_token(model: "PreTrainedModel") -> int:
    """The token before every answer in the decoder of an encoder-decoder.

    Raises:
        UserError: the model's configuration names none.
    """
    token = getattr(model.config.get_text_config(), "decoder_start_token_id", None)
    if token is None:
        raise UserError(f"--base.model: the configuration of {type(model).__name__} has no decoder_start_token_id.")
    return int(token)


def logit_scale(model: "PreTrainedModel") -> float:
    """The factor by which the model multiplies the product of hidden states and output head."""
    named = _numbers(model, LOGIT_SCALES)
    config = model.config.get_text_config()
    tied = config.model_type in SCALE_IF_TIED and config.tie_word_embeddings
    own: float = config.hidden_size**-0.5 if tied or getattr(config, "scale_decoder_outputs", False) else 1.0
    return own * math.prod(value ** LOGIT_SCALES[name] for name, value in named.items())


def logit_cap(model: "PreTrainedModel") -> float | None:
    """The soft cap of the model's logits; None if it has none."""
    return next(iter(_numbers(model, LOGIT_CAPS).values()), None)


def unknown_window(model: "PreTrainedModel") -> str | None:
    """The configuration's field, other than `sliding_window`, that limits how far a layer attends; None if none does.

    Such a window is a part of the layer: it counts positions in the cache, whatever mask it gets (GPT-Neo).
    """
    fields = model.config.get_text_config().to_dict()
    windows = (name for name in fields if name.endswith(("window", "window_size", "window_len")))
    return next((name for name in windows if name != "sliding_window" and type(fields[name]) is int), None)


def cache_name(model: "PreTrainedModel") -> str:
    """The argument of the forward pass that takes the cache: cache_params for Mamba, past_key_values for all others."""
    return "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else "past_key_values"


def context_length(model: "PreTrainedModel") -> int:
    """The longest sequence the model takes, in tokens.

    With longrope (Phi-3) it ends where the model would change the rotary frequencies of all positions, also of those in
    its cache; with dynamic frequencies that is the length it was trained on.
    """
    config = model.config.get_text_config()
    named = (getattr(config, name, None) for name in LENGTHS)
    longest = int(next((length for length in named if length), 2048))
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # some have one per type of attention
    return min([longest, *(kind["original_max_position_embeddings"] for kind in kinds if _changes(kind))])


LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Names of the longest sequence in a configuration."""


def _changes(rope: dict[str, Any]) -> bool:
    """Whether the frequencies change at a length of the sequence that the parameters name."""
    return rope.get("rope_type") in ("dynamic", "longrope") and "original_max_position_embeddings" in rope


def _numbers(model: "PreTrainedModel", names: Iterable[str]) -> dict[str, float]:
    """The fields `names` that the configuration of the language model has as numbers."""
    config = model.config.get_text_config()
    found = {name: getattr(config, name, None) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}
