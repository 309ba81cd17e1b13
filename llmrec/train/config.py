"""How the language model is fine-tuned: section `train` of the configuration."""

from dataclasses import dataclass, field
from typing import Literal

from llmrec.checks import check_fields
from llmrec.errors import UserError
from llmrec.model.config import AdapterConfig, DenseConfig


@dataclass
class TrainConfig:
    """Fine-tuning on transformers.Trainer."""

    method: Literal["full", "lora"] = "full"
    """full trains all weights; lora trains a PEFT adapter and the rows of the item tokens."""
    lora: AdapterConfig = field(default_factory=AdapterConfig)
    """The adapter of method lora."""
    dense: DenseConfig = field(default_factory=DenseConfig)
    """A head for dense retrieval, trained beside the codes."""
    rows_first: float = 0.0
    """Share of the steps, before all others and with a schedule of their own, that train the new token rows alone
    (OpenOneRec, arXiv 2512.24762)."""
    epochs: int = 20
    """Passes over the task mixture."""
    batch_size: int = 32
    """Examples per optimizer step and process, before accumulation is divided out."""
    accumulation: int = 1
    """Forward passes that make one optimizer step; each sees batch_size / accumulation examples."""
    packing: bool = True
    """Put several examples into one row of the batch instead of padding each; none attends to another."""
    learning_rate: float = 2e-3
    """Peak of the cosine schedule."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises."""
    weight_decay: float = 0.1
    """AdamW's."""
    dropout: float = 0.1
    """Share of the activations that training drops, on the token embeddings and on the output of each attention and
    feed-forward block. Method full only."""
    code_dropout: float = 0.0
    """Share of the codes after the first that are hidden in the items of the history. The model then relies less on
    single items and more on their first codes. Method full only."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic under autocast; weights stay float32. Auto: bfloat16 where the hardware multiplies it faster."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    evaluations: int = 10
    """How often the validation loss is taken and a checkpoint written, evenly over the run."""
    patience: int = 0
    """Stop after so many evaluations without a better validation loss, and keep the best; 0: train to the end."""
    validation_users: int = 2000
    """Validation events in the validation loss, drawn once; one per user under leave-one-out."""
    seed: int = 0
    """Of the order of examples, dropout and the adapter."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "train",
            at_least={
                0: ("weight_decay", "max_grad_norm", "patience", "validation_users", "seed"),
                1: ("epochs", "batch_size", "accumulation", "evaluations"),
            },
            positive=("learning_rate",),
            shares=("warmup", "dropout", "code_dropout", "rows_first"),
        )
        if self.batch_size % self.accumulation:
            raise UserError(
                f"--train.batch_size {self.batch_size} is not a multiple of --train.accumulation {self.accumulation}."
            )
        if self.method == "lora" and self.code_dropout:
            raise UserError(
                f"--train.code_dropout {self.code_dropout} works with --train.method full only; set it to 0."
            )
