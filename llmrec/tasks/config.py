"""Which tasks are trained, how often, and how their prompts are built."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from llmrec.checks import check_fields
from llmrec.errors import UserError

TaskName = Literal[
    "sequential",
    "titles-to-item",
    "next-text",
    "item-to-codes",
    "codes-to-item",
    "shared-codes",
    "search",
    "personal-search",
    "chat",
    "preference",
]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
ASKED: tuple[TaskName, ...] = ("sequential", "search", "personal-search")
"""Tasks whose prompts a recommender uses to answer requests."""


def _default_mixture() -> dict[TaskName, float]:
    return {
        "sequential": 1.0,
        "item-to-codes": 1.0,
        "codes-to-item": 0.5,
        "search": 1.0,
        "personal-search": 0.5,
    }


@dataclass
class TasksConfig:
    """The mixture of training tasks."""

    mixture: dict[TaskName, float] = field(default_factory=_default_mixture)
    """Rate of each task: passes over its rows per epoch, e.g. 0.5 for a random half of them. A task that is missing or
    has rate 0 is not trained. Rows are users (sequential, titles-to-item, next-text, personal-search, chat,
    preference), items (item-to-codes, codes-to-item, search) or prefixes that several items share (shared-codes). The
    task preference needs intentions."""
    prompts: str | None = None
    """Folder with your own YAML templates, named like the shipped ones. It needs a file for each task of the mixture
    and for sequential, search and personal-search. Default: the shipped prompts."""
    max_history: int = 20
    """A prompt shows at most this many items of a history, the most recent ones."""
    supervise: Literal["every-item", "target"] = "every-item"
    """Sequential task. every-item: one example trains the next item at each position of a history. target: one example
    trains one target item."""
    max_text_tokens: int = 48
    """Training prompts cut item texts and requests to this many tokens."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.mixture if name not in TASKS]
        if unknown:
            raise UserError(f"--tasks.mixture: unknown task {unknown[0]!r}; known are {', '.join(TASKS)}.")
        check_fields(self, "tasks", at_least={1: ("max_history", "max_text_tokens")})
        if any(rate < 0 for rate in self.mixture.values()) or not any(self.mixture.values()):
            raise UserError(f"--tasks.mixture {self.mixture}: rates are at least 0 and not all 0.")
