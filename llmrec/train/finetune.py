"""Teach a language model the item tokens: all of its weights, or a LoRA adapter and the new rows."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmrec.console import get_logger
from llmrec.data import Cases, Catalog
from llmrec.errors import UserError
from llmrec.tasks.build import build_tasks
from llmrec.tasks.collate import Collator
from llmrec.tasks.config import TasksConfig
from llmrec.tasks.mixture import Mixture, validation_examples
from llmrec.tasks.render import Renderer
from llmrec.train.config import TrainConfig
from llmrec.train.dropout import BlockDropout
from llmrec.train.trainer import run_trainer
from llmrec.vocab.embeddings import embedding_names

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

log = get_logger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """What a fine-tuning learns from.

    Attributes:
        catalog: the items.
        sequences: per user, int [n], training items (rows of the catalogue) in time order.
        validation: cases for the validation loss, or None.
    """

    catalog: Catalog
    sequences: Sequence[np.ndarray]
    validation: Cases | None = None


def with_adapter(model: "PreTrainedModel", item_ids: np.ndarray, config: TrainConfig) -> "PeftModel":
    """`model` with a LoRA adapter on all its linear layers and trainable rows for the item tokens.

    Args:
        model: its token rows already resized and initialised.
        item_ids: int64 [M], ids of the item tokens.
        config: rank, scale and dropout (LoRA, arXiv 2106.09685).
    """
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules="all-linear",
            trainable_token_indices={name: item_ids.tolist() for name in embedding_names(model)},
        ),
    )
    # The rows that train are saved as such; peft would add the whole matrix because it was resized.
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def context_length(model: "PreTrainedModel") -> int:
    """The longest sequence the model takes, in tokens."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 2048))


def finetune(
    model: "PreTrainedModel",
    renderer: Renderer,
    data: TrainingData,
    tasks: TasksConfig,
    config: TrainConfig,
    folder: Path,
) -> "PreTrainedModel | PeftModel":
    """Train on the task mixture; resumes from `folder` when a checkpoint is there.

    Args:
        model: with rows for the item tokens; changed in place.
        renderer: of the same tokenizer and catalogue.
        data: what to learn from.
        tasks: the mixture.
        config: method and schedule.
        folder: for checkpoints and the log.

    Returns:
        The trained model: the same object (full), or a PEFT model around it (lora).

    Raises:
        UserError: nothing to train on, or prompts that don't fit the model's context.
    """
    from accelerate import PartialState

    context = context_length(model)
    _check_context(renderer, tasks, context)
    mixture = Mixture(
        build_tasks(tasks, data.catalog, data.sequences, renderer),
        tasks,
        config.epochs,
        config.batch_size * PartialState().num_processes,
        config.seed,
    )
    log.info("Training on %s", ", ".join(f"{n} {name}" for name, n in mixture.counts.items()))
    validation = None
    if data.validation is not None and len(data.validation):
        validation = validation_examples(renderer, data.validation.sample(config.validation_users, config.seed))
    forward = inspect.signature(model.forward).parameters
    dropout = BlockDropout(model, config.dropout) if config.method == "full" and config.dropout else None
    trained = model if config.method == "full" else with_adapter(model, renderer.vocabulary.all_ids, config)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    attention = model.config._attn_implementation
    if PartialState().device.type == "cpu":
        # torch's fused CPU kernel is half as fast as plain matrix products on short padded sequences
        model.set_attn_implementation("eager")
    trained.train()
    try:
        run_trainer(
            trained,
            mixture,
            validation,
            Collator(renderer, context),
            config,
            folder,
            keeps_logits="logits_to_keep" in forward,
        )
    finally:
        model.set_attn_implementation(attention)  # as after loading, so that scores are the same to the last bit
        if dropout is not None:
            dropout.remove()
    return trained.eval()


def _check_context(renderer: Renderer, tasks: TasksConfig, context: int) -> None:
    levels = len(renderer.vocabulary.ids)
    phrasings = max(
        len(renderer.encode_prompts([renderer.prompt(name, i, **dict.fromkeys(template.inputs, ""))])[0])
        for name, template in renderer.templates.items()
        for i in range(len(template.templates))
    )
    needed = phrasings + (tasks.max_history + 1) * levels + tasks.max_text_tokens
    if needed > context:
        raise UserError(
            f"--tasks.max_history {tasks.max_history} and --tasks.max_text_tokens {tasks.max_text_tokens} make "
            f"prompts of up to {needed} tokens, but the model's context is {context}; lower them."
        )
