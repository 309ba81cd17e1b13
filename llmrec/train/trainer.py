"""The training loop on transformers.Trainer: loss, log, checkpoints, and models split over processes."""

import copy
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from llmrec.atomic import KEY, MARK, is_ours, remove_inside, write_text
from llmrec.console import get_logger, progress_bar
from llmrec.device import resolve_dtype
from llmrec.errors import UserError
from llmrec.model.rows import split_token_rows
from llmrec.tasks.mixture import predicting
from llmrec.train.config import TrainConfig
from llmrec.train.dense import DenseLoss
from llmrec.train.kernels import OPTIMIZERS
from llmrec.train.objective import Objective

if TYPE_CHECKING:
    from torch.utils.data import Subset

    from llmrec.tasks.mixture import Mixture

log = get_logger(__name__)


def spread_over_processes() -> bool:
    """Whether `accelerate launch` uses FSDP or DeepSpeed ZeRO-3, which split the weights over processes."""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    return fsdp or (deepspeed and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3")


def empty_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` with uninitialised weights on the CPU. Weights that are tied in `model` are tied in the copy;
    buffers are copied."""
    parameters = {
        id(p): nn.Parameter(torch.empty_like(p, device="cpu"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    whole = copy.deepcopy(model, parameters)
    for module in whole.modules():
        module._forward_hooks.clear()  # the hooks of dropout are for training only
    return whole


def gather(trainer: "Trainer", whole: nn.Module) -> nn.Module:
    """On the first process, the only one that writes files: put the trained weights into `whole`, an `empty_copy`."""
    state = trainer.accelerator.get_state_dict(trainer.deepspeed if trainer.is_deepspeed_enabled else trainer.model)
    if trainer.is_world_process_zero():
        whole.load_state_dict(state)
    return whole


WHOLE = "whole"  # file in a complete checkpoint; without it, the writing was interrupted


HEAD = "dense.safetensors"


Collate = Callable[[list[Any]], dict[str, torch.Tensor]]


class _Trainer(Trainer):
    """Computes logits only where the next token is labelled; validation batches have their own collator."""

    keeps_logits = True
    objective: Objective
    data_collator: Collate
    validation_collator: Collate

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        inputs = self.objective.inputs(inputs)
        if self.keeps_logits:
            inputs["logits_to_keep"] = predicting(inputs["labels"])
        # With a cache, transformers would not separate the examples that share a row.
        inputs["use_cache"] = False
        with self.objective.reading():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        training, self.data_collator = self.data_collator, self.validation_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training


class _Report(TrainerCallback):
    """Writes `log.jsonl` and log lines, shows a progress bar on a terminal, and marks complete checkpoints.

    It also saves the dense head in each checkpoint, because the head is not part of the model.
    """

    def __init__(self, folder: Path, dense: DenseLoss | None) -> None:
        self.folder = folder
        self.dense = dense
        self.started = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._forget_after(state.global_step)
            self.bar = progress_bar("train", state.max_steps, state.global_step, "steps")

    def _forget_after(self, step: int) -> None:
        """Remove the lines of steps after `step`, the last checkpoint of an interrupted run: these steps run again."""
        path = self.folder / "log.jsonl"
        if path.exists():
            # The last line of a killed run may be incomplete.
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
            write_text(path, "".join(line for line in lines if json.loads(line)["step"] <= step))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.bar.advance()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.bar.close()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        # Before a checkpoint of this step is written, and in all processes, which see the same mean.
        if not all(math.isfinite(logs.get(name, 0.0)) for name in ("loss", "eval_loss")):
            raise UserError(
                f"The loss of step {state.global_step} is not a finite number, at a learning rate of "
                f"{args.learning_rate:g}; lower it, or set --train.dtype float32. The checkpoints before it are kept."
            )
        if not state.is_world_process_zero:
            return
        seconds = round(time.perf_counter() - self.started, 1)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": state.global_step, "seconds": seconds, **logs}) + "\n")
        name = "eval_loss" if "eval_loss" in logs else "loss"
        if name in logs:
            label = "validation loss" if name == "eval_loss" else "loss"
            log.info("step %d of %d: %s %.4f", state.global_step, state.max_steps, label, logs[name])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if self.dense is not None:
                save_file(self.dense.state_dict(), checkpoint / HEAD)
            (checkpoint / WHOLE).touch()


class _Patience(EarlyStoppingCallback):
    """Early stopping. A run that had stopped and is resumed stops again after one step, which does not count."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience


def last_checkpoint(folder: Path) -> Path | None:
    """The latest complete checkpoint in `folder`; None if there is none."""
    whole = [path for path in _checkpoints(folder) if (path / WHOLE).exists()]
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def claim(folder: Path) -> None:
    """Mark `folder` as a training folder of llmrec, and remove its incomplete checkpoints.

    Raises:
        UserError: there are checkpoints that another program made.
    """
    cut_off = [path for path in _checkpoints(folder) if not (path / WHOLE).exists()]
    # The folder of a stage holds a key; the training of `rows_first` uses a folder inside it.
    ours = any(is_ours(path, (MARK, KEY)) for path in (folder, folder.parent))
    if not ours and (others := [path for path in cut_off if any(path.iterdir())]):
        raise UserError(
            f"{others[0]}: a checkpoint that llmrec did not make; name another folder for the training, or move it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    for path in cut_off:
        remove_inside(path, folder, (MARK,))


def _checkpoints(folder: Path) -> list[Path]:
    """The folders in `folder` that transformers takes for checkpoints."""
    return [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def run_trainer(
    model: nn.Module,
    train: "Mixture | Sequence[Any] | Subset[Any]",
    validation: Sequence[Any] | None,
    collator: Collate,
    config: TrainConfig,
    folder: Path,
    keeps_logits: bool,
    validation_collator: Collate | None = None,
    objective: Objective | None = None,
) -> nn.Module:
    """Train `model` in place; resume from the last complete checkpoint in `folder` if there is one.

    Args:
        model: the model, or a PEFT model around it.
        train: the examples of all epochs, in training order.
        validation: examples for the validation loss; None: no validation.
        collator: examples -> batch with `labels`.
        config: the schedule. With patience, the model ends with the weights of the best validation loss.
        folder: for checkpoints and `log.jsonl`.
        keeps_logits: whether the model's forward takes a mask as `logits_to_keep`.
        validation_collator: validation examples -> batch with one example per row; default: `collator`.
        objective: the loss; default: `answer_loss`. Its dense head is trained together with the model, in place; it is
            resumed, and restored to its best state, with the model.

    Returns:
        `model`, or a copy of it if the training splits the weights over the processes.

    Raises:
        UserError: `folder` holds checkpoints that another program made, or the loss becomes infinite or NaN.
    """
    whole = model
    if spread_over_processes():
        whole = empty_copy(model)
        split_token_rows(model)
    objective = objective or Objective()
    dense = objective.dense
    if dense is not None:
        model.dense_loss = dense  # a submodule in training, so that Trainer optimizes, moves and synchronises it
    arguments = _arguments(model, config, folder, len(train), validation is not None, objective)
    _use_one_gpu(arguments)
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=cast(Any, train),
        eval_dataset=cast(Any, validation),
        data_collator=collator,
        compute_loss_func=objective,
        callbacks=[_Report(folder, dense)],
    )
    trainer.keeps_logits, trainer.validation_collator = keeps_logits, validation_collator or collator
    trainer.objective = objective
    # Both callbacks write to stdout, which is only for the output of a command.
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if config.patience and validation is not None:
        trainer.add_callback(_Patience(early_stopping_patience=config.patience))
    checkpoint = last_checkpoint(folder)
    if trainer.is_world_process_zero():
        claim(folder)
    trainer.accelerator.wait_for_everyone()
    if checkpoint is not None:
        log.info("Resuming from %s", checkpoint.name)
        if dense is not None:
            dense.load_state_dict(load_file(checkpoint / HEAD))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    if dense is not None:
        del model.dense_loss
        if config.patience and trainer.state.best_model_checkpoint is not None:
            dense.load_state_dict(load_file(Path(trainer.state.best_model_checkpoint) / HEAD))
    # Without this line, the model would keep the training's autocast until it is saved and loaded.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return model if whole is model else gather(trainer, whole)


def _use_one_gpu(arguments: TrainingArguments) -> None:
    """Let a process that sees several GPUs train on the first: DataParallel would multiply the batch and the loss."""
    if arguments.n_gpu > 1:
        log.warning(
            "Training on one of the %d GPUs; accelerate launch scripts/finetune.py with a file of configs/accelerate "
            "uses all",
            arguments.n_gpu,
        )
        arguments._n_gpu = 1


def _arguments(
    model: nn.Module, config: TrainConfig, folder: Path, examples: int, validate: bool, objective: Objective
) -> TrainingArguments:
    from accelerate import PartialState

    state = PartialState()
    steps = math.ceil(examples / (config.batch_size * state.num_processes))
    every = max(1, math.ceil(steps / config.evaluations))
    bf16 = resolve_dtype(config.dtype, state.device) == torch.bfloat16
    best = bool(config.patience and validate)
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=config.batch_size // config.accumulation,
        per_device_eval_batch_size=config.batch_size // config.accumulation,
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(config.warmup * steps)),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=OPTIMIZERS[config.optimizer],
        bf16=bf16,
        use_cache=cast(Any, model).config.use_cache,  # otherwise the saved configuration would turn the cache off
        use_cpu=state.device.type == "cpu",
        logging_steps=max(1, every // 4),
        eval_strategy="steps" if validate else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=best,
        metric_for_best_model="eval_loss" if best else None,
        greater_is_better=False if best else None,
        restore_callback_states_from_checkpoint=best,  # a resumed run keeps its count of evaluations without progress
        logging_nan_inf_filter=False,  # or a loss that is no number would be told as 0
        prediction_loss_only=True,
        remove_unused_columns=False,
        label_names=["labels"],
        # The loss uses the dense head and the rows of the output head after the forward pass, so DDP would take these
        # parameters for unused.
        ddp_find_unused_parameters=None if objective.dense is None and objective.levels is None else False,
        dataloader_pin_memory=state.device.type == "cuda",
        disable_tqdm=not sys.stderr.isatty(),
        report_to="none",
        seed=config.seed,
    )
