"""Fine-tune a language model on the item tokens: all of its weights, or a LoRA adapter and the new token rows."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from llmrec.collaborative.config import DistillConfig
from llmrec.collaborative.teacher import Teacher
from llmrec.console import get_logger
from llmrec.data import Catalog, EvalExamples
from llmrec.errors import UserError
from llmrec.index.dense import DenseIndex
from llmrec.index.trie import ItemTrie
from llmrec.intentions.intentions import Intentions
from llmrec.model.adapter import reopened, with_adapter, with_rows
from llmrec.model.architecture import context_length, encoder_of, start_token, unwrapped
from llmrec.model.config import BaseConfig, DenseConfig
from llmrec.model.rounding import distance, rounded_otherwise
from llmrec.tasks.config import TasksConfig
from llmrec.tasks.mixture import Collator, Mixture, build_tasks, validation_examples
from llmrec.tasks.pairs import PairCollator
from llmrec.tasks.render import Example, Renderer
from llmrec.train.config import TrainConfig, check_encoder_decoder
from llmrec.train.dense import DenseLoss, dense_loss
from llmrec.train.distill import distill_loss
from llmrec.train.dropout import CodeDropout, drop_out
from llmrec.train.kernels import FLASH, attention_kernel, check_kernels, compiled_layers
from llmrec.train.levels import LevelSoftmax
from llmrec.train.memory import recompute_here
from llmrec.train.objective import Objective
from llmrec.train.trainer import run_trainer, spread_over_processes

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch.utils.data import Subset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = get_logger(__name__)


def check_method(model: "PreTrainedModel", config: TrainConfig) -> None:
    """Check that `model` can be trained as `config` says.

    Raises:
        UserError: a base of 8 or 4 bits would be trained in full or merged with its adapter; all weights would be
            trained and are not float32; a LoRA target is unknown; the model has an adapter other than that of `config`;
            or `rows_first` or a dense head is on while FSDP or ZeRO-3 splits the weights over processes.
    """
    for name, value in (("rows_first", config.rows_first), ("dense.weight", config.dense.weight)):
        if value and spread_over_processes():
            raise UserError(
                f"--train.{name} {value} works where each process holds all weights, not under FSDP or ZeRO-3; set it "
                "to 0, or use configs/accelerate/ddp.yaml or zero2.yaml."
            )
    _check_adapter(model, config)
    if getattr(model, "is_quantized", False) and (config.method == "full" or config.lora.merge):
        raise UserError(
            "--base.bits below 32 needs --train.method lora --train.lora.merge false: such a base is frozen."
        )
    if config.method == "full" and model.dtype != torch.float32:
        raise UserError(
            f"--train.method full: the weights are {model.dtype}, in which small updates are lost; set --base.dtype "
            "float32, or use --train.method lora."
        )
    if config.method == "lora" and config.lora.targets != "all-linear":
        known = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if not list(module.children())}
        if unknown := sorted(set(config.lora.targets) - known):
            raise UserError(
                f"--train.lora.targets: {type(model).__name__} has no layers named {', '.join(unknown)}; "
                f"it has {', '.join(sorted(known - {''}))}."
            )


def _adapter(model: Any) -> "LoraConfig | None":
    """The configuration of the adapter that the model has already; None if it has none."""
    return getattr(model, "peft_config", {}).get("default")


def _check_adapter(model: Any, config: TrainConfig) -> None:
    """Raise UserError if the model has an adapter that can't be trained further as `config` says."""
    adapter = _adapter(model)
    if adapter is None:
        return
    if config.method == "full" or config.rows_first:
        wish = "--train.method full" if config.method == "full" else f"--train.rows_first {config.rows_first}"
        raise UserError(f"{wish}: the model has an adapter; merge it first, or train it further by method lora alone.")
    has = {"rank": adapter.r, "alpha": adapter.lora_alpha, "dropout": adapter.lora_dropout}
    has |= {"rslora": adapter.use_rslora, "dora": adapter.use_dora, "targets": sorted(adapter.target_modules)}
    for name, value in has.items():
        wanted = getattr(config.lora, name)
        same = wanted == "all-linear" or sorted(wanted) == value if name == "targets" else wanted == value
        if not same:
            raise UserError(
                f"--train.lora.{name} {wanted}: the model has an adapter with {name} {value}, which is trained "
                f"further; set it to {value}, or merge the adapter first."
            )


@torch.no_grad()
def check_packing(model: "PreTrainedModel") -> None:
    """Check that examples in one packed row do not see each other.

    The model reads a row of two examples, then a row with a different first example and the same second one. The logits
    of the second example must be equal within the model's own rounding errors: a mixture of experts sums the tokens of
    a row in an order that depends on all of them.

    Raises:
        UserError: the logits differ, or the model takes no position ids.
    """
    takes_positions = "position_ids" in inspect.signature(unwrapped(model).forward).parameters
    if not takes_positions or not _apart(model):
        raise UserError(
            f"--train.packing true: {type(model).__name__} with {model.config._attn_implementation} attention lets "
            "examples that share a row see each other; set --train.packing false."
        )


def _apart(model: "PreTrainedModel") -> bool:
    rows = torch.tensor([[0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 1, 0]], device=model.device)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]], device=model.device)
    training = model.training
    model.eval()

    def second_example(row: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=row[None], position_ids=positions, use_cache=False).logits
        return logits[:, 3:]

    one, other = map(second_example, rows)
    with rounded_otherwise(model):
        rounding = distance(second_example(rows[0]), one)
    model.train(training)
    return distance(one, other) <= 2 * rounding


def pretrain(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], config: BaseConfig
) -> None:
    """Train a model made here on plain text, in place: next-token loss, AdamW, `config.pretrain_epochs` passes."""
    import tempfile

    from transformers import DataCollatorForLanguageModeling

    from llmrec.train.config import TrainConfig
    from llmrec.train.trainer import run_trainer

    encoded = tokenizer([text + tokenizer.eos_token for text in texts if text], truncation=True)["input_ids"]
    generator = torch.Generator().manual_seed(config.seed)
    order = [torch.randperm(len(encoded), generator=generator) for _ in range(config.pretrain_epochs)]
    examples = [{"input_ids": encoded[i]} for i in torch.cat(order).tolist()]
    settings = TrainConfig(batch_size=32, learning_rate=1e-3, evaluations=1, seed=config.seed)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    log.info("Pretraining on %d texts, %d passes", len(encoded), config.pretrain_epochs)
    with tempfile.TemporaryDirectory() as folder:
        run_trainer(model, examples, None, collator, settings, Path(folder), keeps_logits=True)
    model.eval()


@dataclass(frozen=True)
class TrainingData:
    """The data of a fine-tuning.

    Attributes:
        catalog: the N items.
        sequences: per user, int [n], training items (rows of the catalogue) in time order.
        validation: cases for the validation loss, or None.
        users: the users' ids, in the order of `sequences`.
        intentions: intentions of items and preferences of users, in words, or None.
        vectors: float32 [N, D], of the items' texts, which train a dense head, or None.
        teacher: of `sequences`, for `train.distill`, or None.
        dense: a dense head that is trained further, with the own vectors of the N items, if it has any; None: a new
            one, if `train.dense.weight` is above 0.
    """

    catalog: Catalog
    sequences: Sequence[np.ndarray]
    validation: EvalExamples | None = None
    users: Sequence[str] = ()
    intentions: Intentions | None = None
    vectors: np.ndarray | None = None
    teacher: Teacher | None = None
    dense: DenseIndex | None = None


def finetune(
    model: "PreTrainedModel",
    renderer: Renderer,
    data: TrainingData,
    tasks: TasksConfig,
    config: TrainConfig,
    folder: Path,
) -> "tuple[PreTrainedModel | PeftModel, DenseIndex | None]":
    """Train on the task mixture; resume from the checkpoint in `folder` if there is one.

    Args:
        model: with rows for the item tokens; changed in place.
        renderer: of the same tokenizer and catalogue.
        data: the training data.
        tasks: the mixture.
        config: method and schedule.
        folder: for checkpoints and the log.

    Returns:
        The trained model: `model` itself (full), or a PEFT model around it (lora); and the dense index of the trained
        head, or None if `config.dense.weight` is 0.

    Raises:
        UserError: there are no training examples, the model was not made for `tasks.user_tokens`, `tasks.max_history`
            or `tasks.title_tokens`, no item has a title that these would show, the prompts do not fit into the model's
            context, the method does not fit the model, this machine lacks a kernel that the configuration names, the
            dense head has no text vectors or other sizes than configured, or the distillation has no teacher of these
            sequences.
    """
    from accelerate import PartialState
    from torch.utils.data import Subset

    if encoder_of(unwrapped(model)) is not None:
        check_encoder_decoder("--base.model", tasks, config)
    check_method(model, config)
    check_kernels(config)
    if tasks.user_tokens != (renderer.users is not None):
        has = "no tokens of users" if tasks.user_tokens else "tokens of users"
        raise UserError(
            f"--tasks.user_tokens {tasks.user_tokens}: the model has {has}; make it with user_tokens="
            f"{tasks.user_tokens}, or set this to {not tasks.user_tokens}."
        )
    if tasks.max_history != renderer.max_history:
        raise UserError(
            f"--tasks.max_history {tasks.max_history}: the model was made for {renderer.max_history}; make it with "
            f"max_history={tasks.max_history}, or set this to {renderer.max_history}."
        )
    if tasks.title_tokens != renderer.title_tokens:
        raise UserError(
            f"--tasks.title_tokens {tasks.title_tokens}: the model was made for {renderer.title_tokens}; make it with "
            f"title_tokens={tasks.title_tokens}, or set this to {renderer.title_tokens}."
        )
    if tasks.title_tokens and (data.catalog.frame["title"] == "").all():
        raise UserError(f"--tasks.title_tokens {tasks.title_tokens}: no item has a title; set it to 0.")
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
    unpacked = replace(config, packing=False, dense=DenseConfig(), distill=DistillConfig())
    collate = make_collator(model, renderer, config)
    learn = partial(
        run_trainer,
        validation=validation,
        collator=collate,
        validation_collator=make_collator(model, renderer, unpacked),
        keeps_logits=_keeps_logits(model),
    )
    vocabulary, both = renderer.vocabulary, renderer.codes_of_both
    tries = _tries(renderer) if config.softmax == "catalogue" else []
    distill = distill_loss(data.teacher, data.sequences, renderer.codes, vocabulary, config.distill.weight)

    def objective(trained: Any, dense: DenseLoss | None = None) -> Objective:
        levels = None if config.softmax == "vocabulary" else LevelSoftmax(trained, both, tries)
        return Objective(dense, config.dense.weight, distill, levels)

    alone = step * min(round(config.rows_first * len(mixture) / step), (len(mixture) - 1) // step)
    first, rest = (Subset[Example](cast(Any, mixture), part) for part in (range(alone), range(alone, len(mixture))))
    if recompute_here(model, both, mixture, collate, config):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with attention_kernel(model, config.attention):
        if config.packing:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=config.attention in FLASH):
                check_packing(model)
        with compiled_layers(model, config.compile):
            if alone:
                log.info("Training the rows of the item tokens alone in the first %d steps", alone // step)
                _learn_rows(model, renderer.new_ids, first, config, folder / "rows", learn, objective)
            levels = len(vocabulary.ids)
            dense = dense_loss(model, data.vectors, data.sequences, levels, config, data.dense, distill)
            trained = _learn(model, renderer, rest, config, folder, learn, objective, dense).eval()
    return trained, None if dense is None else dense.index()


def _tries(renderer: Renderer) -> list[ItemTrie]:
    """The tries of the items' codes, and of those of behaviour, which some items lack."""
    streams = [renderer] if renderer.behaviour is None else [renderer, renderer.behaviour]
    return [ItemTrie.build(stream.codes[stream.codes[:, 0] >= 0], stream.vocabulary.level_sizes) for stream in streams]


def make_collator(model: "PreTrainedModel", renderer: Renderer, config: TrainConfig) -> Collator:
    """Makes the batches that `model` trains on."""
    context, with_items, with_events = context_length(model), config.dense.weight > 0, config.distill.weight > 0
    if encoder_of(unwrapped(model)) is not None:
        return PairCollator(renderer, context, start_token(unwrapped(model)), with_items, with_events)
    return Collator(renderer, context, config.packing, with_items, with_events, config.attention in FLASH)


def _learn_rows(
    model: "PreTrainedModel",
    item_ids: np.ndarray,
    examples: "Subset[Example]",
    config: TrainConfig,
    folder: Path,
    learn: Callable[..., Any],
    objective: Callable[..., Objective],
) -> None:
    """Train only the rows of the item tokens, and put them into `model`."""
    rows = with_rows(model, item_ids).train()
    evaluations = max(1, round(config.rows_first * config.evaluations))
    once = replace(config, evaluations=evaluations, patience=0)
    learn(rows, examples, config=once, folder=folder, objective=objective(rows))
    rows.merge_and_unload()
    if config.method == "full":
        model.requires_grad_(True)


def _learn(
    model: "PreTrainedModel",
    renderer: Renderer,
    examples: "Subset[Example]",
    config: TrainConfig,
    folder: Path,
    learn: Callable[..., Any],
    objective: Callable[..., Objective],
    dense: DenseLoss | None,
) -> "PreTrainedModel | PeftModel":
    """Train `model` by the configuration's method. Returns `model` (full) or a PEFT model around it (lora)."""
    torch.manual_seed(config.seed)  # the same initial adapter, whatever was drawn before
    if config.method == "full":
        trained: Any = model
    else:
        trained = reopened(model) if _adapter(model) else with_adapter(model, renderer.new_ids, config.lora)
    with ExitStack() as hooks:
        if dense is not None:
            hooks.enter_context(dense.watching(trained))
        if config.method == "full" and config.dropout:
            hooks.callback(drop_out(model, config.dropout).remove)
        if config.method == "full" and config.code_dropout:
            streams = [stream for stream in (renderer, renderer.behaviour) if stream is not None]
            later = np.concatenate([ids for stream in streams for ids in stream.vocabulary.ids[1:]])
            hooks.callback(CodeDropout(model, later, config.code_dropout).remove)
        learnt = learn(trained.train(), examples, config=config, folder=folder, objective=objective(trained, dense))
        return cast(Any, learnt)


def _keeps_logits(model: "PreTrainedModel") -> bool:
    """Whether the forward pass takes a mask as `logits_to_keep`; models outside transformers may take only a number."""
    inner = unwrapped(model)
    ours = type(inner).__module__.startswith("transformers.")
    return ours and "logits_to_keep" in inspect.signature(inner.forward).parameters


def _check_context(renderer: Renderer, tasks: TasksConfig, context: int) -> None:
    levels = max(len(each.vocabulary.ids) for each in (renderer, renderer.behaviour) if each is not None)
    phrasings = max(
        len(renderer.encode_prompts([renderer.prompt(name, i, **dict.fromkeys(template.inputs, ""))])[0])
        for name, template in renderer.templates.items()
        for i in range(len(template.templates))
    )
    levels_of_user = 0 if renderer.users is None else len(renderer.users.vocabulary.ids)
    history = renderer.max_history * (levels + renderer.most_of_title)
    needed = phrasings + levels_of_user + history + levels + tasks.max_text_tokens
    if needed > context:
        titles = f", --tasks.title_tokens {tasks.title_tokens}" if tasks.title_tokens else ""
        raise UserError(
            f"--tasks.max_history {tasks.max_history}{titles} and --tasks.max_text_tokens {tasks.max_text_tokens} make "
            f"prompts of up to {needed} tokens, but the model's context is {context}; lower them."
        )
