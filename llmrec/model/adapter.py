"""PEFT adapters: LoRA with the rows of the item tokens, and these rows alone."""

import warnings
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from llmrec.model.config import AdapterConfig
from llmrec.model.rows import embedding_names

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def with_adapter(model: "PreTrainedModel", item_ids: np.ndarray, config: AdapterConfig) -> "PeftModel":
    """`model` with a LoRA adapter (arXiv 2106.09685) and trainable rows for the item tokens.

    Args:
        model: its token rows already resized and initialised.
        item_ids: int64 [M], ids of the item tokens.
        config: where the adapter sits, its rank, scale and dropout.
    """
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=config.targets,
            use_rslora=config.rslora,
            use_dora=config.dora,
            trainable_token_indices={name: item_ids.tolist() for name in embedding_names(model)},
        ),
    )
    # The rows that train are saved as such; peft would add the whole matrix because it was resized.
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def with_rows(model: "PreTrainedModel", item_ids: np.ndarray) -> "PeftModel":
    """`model`, frozen but for the rows int64 [M] of the item tokens; `merge_and_unload` puts them in their places."""
    from peft import TrainableTokensConfig, get_peft_model

    config = TrainableTokensConfig(
        task_type="CAUSAL_LM", token_indices=item_ids.tolist(), target_modules=embedding_names(model)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # it ties these rows all the same
        adapted = get_peft_model(model, config)
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted
