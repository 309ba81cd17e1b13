"""Teach a language model the item tokens: all of its weights, or a LoRA adapter and the new rows."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from llmrec.console import get_logger
from llmrec.data import Cases, Catalog
from llmrec.errors import UserError
from llmrec.intentions.intentions import Intentions
from llmrec.tasks.build import build_tasks
from llmrec.tasks.collate import Collator
from llmrec.tasks.config import TasksConfig
from llmrec.tasks.mixture import Mixture, validation_examples
from llmrec.tasks.render import Example, Renderer
from llmrec.train.adapter import check_method, with_adapter, with_rows
from llmrec.train.config import TrainConfig
from llmrec.train.dense import DenseLoss
from llmrec.train.dropout import BlockDropout, CodeDropout
from llmrec.train.packing import check_packing
from llmrec.train.trainer import run_trainer
from llmrec.vocab.dense import DenseHead
from llmrec.vocab.tokens import ItemVocabulary

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.utils.data import Subset
    from transformers import PreTrainedModel

log = get_logger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """What a fine-tuning learns from.

    Attributes:
        catalog: the items.
        sequences: per user, int [n], training items (rows of the catalogue) in time order.
        validation: cases for the validation loss, or None.
        users: the users' ids, in the order of `sequences`.
        intentions: what people want, in words, or None.
        vectors: float32 [N, D], of the items' texts, for a dense head to learn from, or None.
    """

    catalog: Catalog
    sequences: Sequence[np.ndarray]
    validation: Cases | None = None
    users: Sequence[str] = ()
    intentions: Intentions | None = None
    vectors: np.ndarray | None = None


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
) -> "tuple[PreTrainedModel | PeftModel, DenseHead | None]":
    """Train on the task mixture; resumes from `folder` when a checkpoint is there.

    Args:
        model: with rows for the item tokens; changed in place.
        renderer: of the same tokenizer and catalogue.
        data: what to learn from.
        tasks: the mixture.
        config: method and schedule.
        folder: for checkpoints and the log.

    Returns:
        The trained model: the same object (full), or a PEFT model around it (lora); and the dense head, if there is
        one to be trained.

    Raises:
        UserError: nothing to train on, prompts that don't fit the model's context, a method that doesn't fit it, or a
            dense head without text vectors.
    """
    from accelerate import PartialState
    from torch.utils.data import Subset

    check_method(model, config)
    context = context_length(model)
    _check_context(renderer, tasks, context)
    step = config.batch_size * PartialState().num_processes
    mixture = Mixture(
        build_tasks(tasks, data.catalog, data.sequences, renderer, data.users, data.intentions),
        tasks,
        config.epochs,
        step,
        config.seed,
    )
    log.info("Training on %s", ", ".join(f"{n} {name}" for name, n in mixture.counts.items()))
    validation = None
    if data.validation is not None and len(data.validation):
        validation = validation_examples(renderer, data.validation.sample(config.validation_users, config.seed))
    learn = partial(
        run_trainer,
        validation=validation,
        collator=Collator(renderer, context, config.packing),
        validation_collator=Collator(renderer, context),
        keeps_logits=_keeps_logits(model),
    )
    alone = step * min(round(config.rows_first * len(mixture) / step), (len(mixture) - 1) // step)
    first, rest = (Subset[Example](cast(Any, mixture), part) for part in (range(alone), range(alone, len(mixture))))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with _fast_attention(model):
        if config.packing:
            check_packing(model)
        if alone:
            log.info("Training the rows of the item tokens alone in the first %d steps", alone // step)
            _learn_rows(model, renderer.vocabulary.all_ids, first, config, folder / "rows", learn)
        dense = _dense_loss(model, renderer, data, config)
        trained = _learn(model, renderer.vocabulary, rest, config, folder, learn, dense).eval()
    return trained, None if dense is None else dense.head


def _dense_loss(
    model: "PreTrainedModel", renderer: Renderer, data: TrainingData, config: TrainConfig
) -> DenseLoss | None:
    """The loss of a dense head made by the configuration's seed; None if there is to be none."""
    if not config.dense_weight:
        return None
    if data.vectors is None:
        raise UserError(
            f"--train.dense_weight {config.dense_weight} trains a dense head on text vectors of the items; pass "
            "vectors=, or set it to 0."
        )
    torch.manual_seed(config.seed)
    hidden = model.get_output_embeddings().weight.shape[1]
    head = DenseHead(hidden, data.vectors.shape[1], config.dense_dim)
    return DenseLoss(head, renderer, data.vectors, data.sequences)


def _learn_rows(
    model: "PreTrainedModel",
    item_ids: np.ndarray,
    examples: "Subset[Example]",
    config: TrainConfig,
    folder: Path,
    learn: Callable[..., Any],
) -> None:
    """Train the rows of the item tokens alone, and put them into `model`."""
    rows = with_rows(model, item_ids).train()
    evaluations = max(1, round(config.rows_first * config.evaluations))
    learn(rows, examples, config=replace(config, evaluations=evaluations, patience=0), folder=folder)
    rows.merge_and_unload()
    if config.method == "full":
        model.requires_grad_(True)


def _learn(
    model: "PreTrainedModel",
    vocabulary: ItemVocabulary,
    examples: "Subset[Example]",
    config: TrainConfig,
    folder: Path,
    learn: Callable[..., Any],
    dense: DenseLoss | None,
) -> "PreTrainedModel | PeftModel":
    """Train `model` by the configuration's method; it comes back, or a PEFT model around it."""
    torch.manual_seed(config.seed)  # of the adapter, whether or not anything was drawn before
    trained = model if config.method == "full" else with_adapter(model, vocabulary.all_ids, config)
    with ExitStack() as hooks:
        if dense is not None:
            hooks.enter_context(dense.watching(trained))
        if config.method == "full" and config.dropout:
            hooks.callback(BlockDropout(model, config.dropout).remove)
        if config.method == "full" and config.code_dropout:
            hooks.callback(CodeDropout(model, np.concatenate(vocabulary.ids[1:]), config.code_dropout).remove)
        return learn(trained.train(), examples, config=config, folder=folder, dense=dense)


@contextmanager
def _fast_attention(model: "PreTrainedModel") -> Iterator[None]:
    """Plain matrix products on CPUs, where torch's fused kernel is half as fast on short sequences."""
    from accelerate import PartialState

    before = model.config._attn_implementation
    if PartialState().device.type == "cpu":
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)  # as after loading, so that scores are the same to the last bit


def _keeps_logits(model: "PreTrainedModel") -> bool:
    """Whether the forward pass takes a mask as `logits_to_keep`; code from elsewhere may take a number only."""
    ours = type(model).__module__.startswith("transformers.")
    return ours and "logits_to_keep" in inspect.signature(model.forward).parameters


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
