"""The first layers of a pretrained model: what `base.keep_layers` keeps."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from llmrec.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def cut_layers(model: "PreTrainedModel", count: int, subject: str) -> None:
    """Keep the first `count` decoder layers of a model and its final norm, in place (SLMRec, arXiv 2405.17890).

    The config changes too, so the saved model is an ordinary one of its architecture with `count` layers.

    Args:
        model: a causal language model of transformers.
        count: number of layers; 0: all.
        subject: begins the error message.

    Raises:
        UserError: the model has fewer layers, or its architecture can't be cut: its layers are no plain list, or a
            shorter model would not have the same parts.
    """
    if count == 0:
        return
    if model.config.is_encoder_decoder:
        raise UserError(f"{subject}: {type(model).__name__} has two lists of layers, which aren't cut; set it to 0.")
    config = model.config.get_text_config()
    total = config.num_hidden_layers
    if count > total:
        raise UserError(f"{subject}: the base model has {total} layers; choose at most {total}, or 0 for all.")
    del decoder_layers(model, subject)[count:]
    config.num_hidden_layers = count
    for name, value in vars(config).items():
        if "layer" in name and isinstance(value, list) and len(value) == total:  # such as layer_types
            setattr(config, name, value[:count])
    if (trouble := _rebuilding_trouble(model)) is not None:
        raise UserError(f"{subject}: {model.config.model_type} models can't be cut: {trouble}; set it to 0.")


def decoder_layers(model: "PreTrainedModel", subject: str) -> nn.ModuleList:
    """The list of the decoder layers of a model, in the order in which they run.

    Raises:
        UserError: the model has no such list; the message begins with `subject`.
    """
    total = model.config.get_text_config().num_hidden_layers
    lists = [
        (name.count("."), module)
        for name, module in (model.get_decoder() or model).named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == total
    ]
    if not lists:
        raise UserError(f"{subject}: {model.config.model_type} models have no list of {total} layers; leave it out.")
    return min(lists, key=lambda found: found[0])[1]  # the outermost: a layer may hold lists of its own


def _rebuilding_trouble(model: "PreTrainedModel") -> str | None:
    """Why a model made from this model's config would not have the same parameters; None if it has the same."""
    config = model.config
    try:
        again = type(config).from_dict(config.to_dict())
        with torch.device("meta"):
            rebuilt = type(model)(again)
    except (ValueError, KeyError, IndexError) as error:
        return " ".join(str(error).split())
    names, expected = ({name for name, _ in each.named_parameters()} for each in (model, rebuilt))
    if other := sorted(names ^ expected):
        return f"a model with so few layers differs in {other[0]}"
    return None
