"""How the language model is fine-tuned: section `train` of the configuration."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from llmrec.checks import check_fields
from llmrec.collaborative.config import DistillConfig
from llmrec.errors import UserError
from llmrec.model.config import AdapterConfig, DenseConfig
from llmrec.tasks.config import TasksConfig


@dataclass
class TrainConfig:
    """Fine-tuning on transformers.Trainer."""

    method: Literal["full", "lora"] = "full"
    """full trains all weights; lora trains a PEFT adapter and the rows of the item tokens."""
    lora: AdapterConfig = field(default_factory=AdapterConfig)
    """The adapter of method lora."""
    dense: DenseConfig = field(default_factory=DenseConfig)
    """A head for dense retrieval, trained together with the codes."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """What the experts teach the language model."""
    rows_first: float = 0.0
    """Share of the steps, at the start, that train only the new token rows, with a learning rate schedule of their own
    (OpenOneRec, arXiv 2512.24762)."""
    epochs: int = 20
    """Passes over the task mixture."""
    batch_size: int = 32
    """Examples per optimizer step and process. One forward pass takes batch_size / accumulation of them."""
    accumulation: int = 1
    """Forward passes per optimizer step; each takes batch_size / accumulation examples."""
    packing: bool = True
    """Put several examples into one row of the batch instead of padding each. Examples do not attend to each other."""
    learning_rate: float = 2e-3
    """Peak learning rate of the cosine schedule."""
    warmup: float = 0.05
    """Share of the steps, at the start, in which the learning rate rises to its peak."""
    weight_decay: float = 0.1
    """Weight decay of AdamW."""
    dropout: float = 0.1
    """Dropout rate in training, on the token embeddings and on the output of each attention and feed-forward block.
    Method full only."""
    softmax: Literal["vocabulary", "level", "catalogue"] = "vocabulary"
    """Among which tokens the loss of an item token is computed: the whole vocabulary, as published; the codes of its
    level; or the codes that continue its prefix to an item of the catalogue, as decoding compares them by default. With
    the large vocabulary of a pretrained model, level and catalogue are faster."""
    code_dropout: float = 0.0
    """Share of the codes at levels 2 to L that training hides in the input. The model then relies less on single items
    and more on their first codes. Method full only."""
    max_grad_norm: float = 1.0
    """Clip gradients to this norm."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic under autocast; weights stay float32. auto: bfloat16 where the hardware multiplies it faster."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: less memory, a third to a half more operations. auto: where a step
    would fill more than 85% of the GPU's memory otherwise, by the figures of `llmrec estimate`; the log says so. Never
    on a CPU."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"] = "auto"
    """Attention kernel of the training. auto: the model's own, which is sdpa mostly; eager on a CPU, which is faster on
    short sequences. The flash kernels need their packages and bfloat16; packed examples then stand in one row without
    padding, and no attention between them is computed. Decoding has masks of its own and keeps the model's kernel."""
    compile: bool = False
    """Compile the decoder layers by torch.compile, for long trainings on a GPU: the first steps take minutes more."""
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = "adamw"
    """AdamW with states of 4 bytes, or of 1 byte by bitsandbytes (arXiv 2110.02861): 6 bytes less per trained weight.
    paged: the states move to the CPU's memory when the GPU's is short."""
    evaluations: int = 10
    """Number of times that the run computes the validation loss and writes a checkpoint, at regular intervals."""
    patience: int = 0
    """Stop after this many evaluations without a better validation loss; keep the best model. 0: train to the end."""
    validation_users: int = 2000
    """Most events in the validation loss, a random sample drawn once. Under leave-one-out a user has one event."""
    seed: int = 0
    """Random seed of the examples and their order, of dropout, and of the initial adapter and dense head."""

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
        if self.distill.dense_weight and not self.dense.weight:
            raise UserError(
                f"--train.distill.dense_weight {self.distill.dense_weight} teaches a dense head, and there is none; "
                "set --train.dense.weight, such as to 1, or this to 0."
            )
        if self.method == "lora" and self.code_dropout:
            raise UserError(
                f"--train.code_dropout {self.code_dropout} works with --train.method full only; set it to 0."
            )

    def cache_key(self) -> dict[str, Any]:
        """The fields on which the result depends. A field that version 0.1 lacked counts only if it is set."""
        later = {"distill": self.distill.weight > 0, "softmax": self.softmax != "vocabulary", "compile": self.compile}
        later |= {"attention": self.attention != "auto", "optimizer": self.optimizer != "adamw"}
        found = {name: value for name, value in asdict(self).items() if later.get(name, True)}
        return found | {"gradient_checkpointing": self.gradient_checkpointing is True}  # version 0.1 had no auto


def check_encoder_decoder(subject: str, tasks: TasksConfig, train: TrainConfig) -> None:
    """Check that an encoder-decoder can be trained so: in full, and on the answers alone, each with its own row.

    Args:
        subject: the flag that named the model; the error message begins with it.
        tasks: the mixture.
        train: method and schedule.

    Raises:
        UserError: the method is lora or has `rows_first`, rows are packed, or items of the prompts are targets.
    """
    wanted = [
        (train.method != "full", "train.method full"),
        (train.rows_first > 0, "train.rows_first 0"),
        (train.packing, "train.packing false"),
        (tasks.supervise != "target", "tasks.supervise target"),
    ]
    if others := [f"--{setting}" for wrong, setting in wanted if wrong]:
        raise UserError(
            f"{subject}: an encoder-decoder trains all weights, on the answers alone, one example per row; set "
            f"{' '.join(others)}."
        )
