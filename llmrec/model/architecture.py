"""What differs between the causal language models of transformers: where their layers are and how they make logits."""

import inspect
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_SCALES = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}
"""Names of a factor of the logits in a model's configuration (Cohere; Falcon-H1; Granite), each with its exponent."""

LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names of a soft cap c of the logits, c * tanh(logits / c), in a configuration (Gemma, RecurrentGemma, xLSTM)."""


def unwrapped(model: Any) -> "PreTrainedModel":
    """The model inside a PEFT model; its layers contain the adapter. Any other model itself."""
    inner: PreTrainedModel = getattr(model, "get_base_model", lambda: model)()
    return inner


def decoder_of(model: "PreTrainedModel") -> nn.Module:
    """The part of a causal language model that makes hidden states from tokens: all of it but the output head."""
    if model.base_model is not model:
        return model.base_model
    inner: nn.Module = model.model  # Llama 4 names its prefix after another class
    return inner


def logit_scale(model: "PreTrainedModel") -> float:
    """The factor by which the model multiplies the product of hidden states and output head."""
    named = _numbers(model, LOGIT_SCALES)
    return math.prod(value ** LOGIT_SCALES[name] for name, value in named.items())


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
