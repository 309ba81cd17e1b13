"""What an encoder-decoder can't be trained with."""

from llmrec.errors import UserError
from llmrec.tasks.config import TasksConfig
from llmrec.train.config import TrainConfig


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
