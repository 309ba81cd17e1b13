"""PEFT adapters: LoRA with the rows of the item tokens, and these rows alone."""

import warnings
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from llmrec.errors import UserError
from llmrec.train.config import TrainConfig
from llmrec.train.shards import spread_over_processes
from llmrec.vocab.embeddings import embedding_names

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def check_method(model: "PreTrainedModel", config: TrainConfig) -> None:
    """Whether `model` can be trained as `config` says.

    Raises:
        UserError: a base of 8 or 4 bits that would be trained in full or merged, an unknown LoRA target, or rows that
            come first when the weights are spread over processes.
    """
    if config.rows_first and spread_over_processes():
        raise UserError(
            f"--train.rows_first {config.rows_first} works where each process holds all weights, not under FSDP or "
            "ZeRO-3; set it to 0, or use configs/accelerate/ddp.yaml or zero2.yaml."
        )
    if config.dense_weight and spread_over_processes():
        raise UserError(
            f"--train.dense_weight {config.dense_weight} works where each process holds all weights, not under FSDP or "
            "ZeRO-3; set it to 0, or use configs/accelerate/ddp.yaml or zero2.yaml."
        )
    if getattr(model, "is_quantized", False) and (config.method == "full" or config.merge):
        raise UserError("--base.bits below 32 needs --train.method lora --train.merge false: such a base is frozen.")
    if config.method == "lora" and config.lora_targets != "all-linear":
        known = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if not list(module.children())}
        if unknown := sorted(set(config.lora_targets) - known):
            raise UserError(
                f"--train.lora_targets: {type(model).__name__} has no layers named {', '.join(unknown)}; "
                f"it has {', '.join(sorted(known - {''}))}."
            )


def with_adapter(model: "PreTrainedModel", item_ids: np.ndarray, config: TrainConfig) -> "PeftModel":
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
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=config.lora_targets,
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
