"""Rows for the item tokens in a model's input embedding and, where it is not tied, its output head."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from llmrec.vocab.initial import Start, gaussian

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_item_rows(
    model: "PreTrainedModel", item_ids: np.ndarray, rows: int, seed: int, start: Start = gaussian
) -> None:
    """Give `model` exactly `rows` token rows (the tokenizer's length) and initialise those of the item tokens.

    Rows of old tokens keep their bits. Rows past the tokenizer's length, which some checkpoints carry as padding, go:
    a softmax over them would give probability to nothing, and peft's `AutoPeftModelForCausalLM` resizes to this same
    length.

    Args:
        model: any causal language model, tied or untied; changed in place.
        item_ids: int64 [M], ids of the item tokens, all new.
        rows: number of rows afterwards, `len(tokenizer)`.
        seed: of the random part of `start`.
        start: old rows -> new rows; called for the input embedding and, unless it is tied, for the head.
    """
    model.resize_token_embeddings(rows, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    old = torch.ones(rows, dtype=torch.bool)
    old[torch.from_numpy(item_ids)] = False
    weights = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not weights[0]:
        weights.append(head.weight)
    with torch.no_grad():
        for weight in weights:
            known = weight[old.to(weight.device)].float()
            new = start(known, len(item_ids), generator)
            weight[torch.from_numpy(item_ids).to(weight.device)] = new.to(weight.dtype)


def embedding_names(model: "PreTrainedModel") -> list[str]:
    """Last names of the modules that hold token rows: the input embedding and, unless it is tied, the head."""
    modules = {id(module): name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = [modules[id(embedding)]]
    if head is not None and head.weight is not embedding.weight:
        names.append(modules[id(head)])
    return names
