"""The base language model and how it is fine-tuned."""

from dataclasses import dataclass
from typing import Literal

from llmrec.errors import UserError


@dataclass
class TrainConfig:
    """Fine-tuning on transformers.Trainer."""

    method: Literal["full", "lora"] = "full"
    """full trains all weights; lora trains a PEFT adapter and the rows of the item tokens."""
    merge: bool = True
    """lora: write one merged model into the bundle (True), or the adapter, which needs its base (False)."""
    lora_rank: int = 16
    """Rank of the adapter."""
    lora_alpha: int = 32
    """Scale of the adapter."""
    lora_dropout: float = 0.05
    """Dropout on the adapter's input."""
    lora_targets: Literal["all-linear"] | list[str] = "all-linear"
    """Layers that the adapter sits on: names such as [q_proj, v_proj], or all linear layers but the output head."""
    rslora: bool = False
    """Scale the adapter by alpha / sqrt(rank) instead of alpha / rank (rsLoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Learn the weights' magnitudes apart from their directions (DoRA, arXiv 2402.09353)."""
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
    """Let several examples share a row of the batch instead of padding each; none sees another."""
    learning_rate: float = 2e-3
    """Peak of the cosine schedule."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises."""
    weight_decay: float = 0.1
    """AdamW's."""
    dropout: float = 0.1
    """On the token embeddings and on the output of every attention and feed-forward block, full method only."""
    code_dropout: float = 0.0
    """Share of the codes after the first, of items that are read, that the model does not get to see: what it says next
    then hangs less on single items, and more on what their first codes share. Full method only."""
    dense_weight: float = 0.0
    """Weight of the cosine loss that trains a head for dense retrieval beside the codes (LIGER, arXiv 2411.18814, has
    1): with it the model also ranks items that no training has seen; 0: no head."""
    dense_dim: int = 128
    """Dimensions of the head's space."""
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
        for name in ("lora_rank", "epochs", "batch_size", "accumulation", "evaluations"):
            if getattr(self, name) < 1:
                raise UserError(f"--train.{name} {getattr(self, name)}: expected at least 1.")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"--train.batch_size {self.batch_size} is not a multiple of --train.accumulation {self.accumulation}."
            )
        if self.method == "lora" and self.code_dropout:
            raise UserError(
                f"--train.code_dropout {self.code_dropout} works with --train.method full only; set it to 0."
            )
        if self.dense_weight < 0 or self.dense_dim < 1:
            raise UserError(
                f"--train.dense_weight {self.dense_weight} and --train.dense_dim {self.dense_dim}: expected at least 0 "
                "and at least 1."
            )
        for name in ("dropout", "code_dropout", "lora_dropout", "rows_first"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--train.{name} {getattr(self, name)}: expected at least 0 and below 1.")
