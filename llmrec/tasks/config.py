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
"""Tasks that a recommender is asked with."""


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
    """Passes over a task's rows per epoch; 0 or unnamed leaves a task out. Rows are users (sequential, titles-to-item,
    next-text, personal-search, chat, preference), items (item-to-codes, codes-to-item, search) or first codes that
    several items share (shared-codes). preference needs intentions."""
    prompts: str | None = None
    """Folder with YAML templates of your own (same names), at least for the mixture's tasks and for sequential, search
    and personal-search; default: the shipped prompts."""
    max_history: int = 20
    """Most recent items of a history that a prompt shows."""
    supervise: Literal["every-item", "target"] = "every-item"
    """Sequential task: learn the next item at each item of a history in one pass, or one target per example."""
    max_text_tokens: int = 48
    """Item text and requests are cut to this many tokens in training prompts."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.mixture if name not in TASKS]
        if unknown:
            raise UserError(f"--tasks.mixture: unknown task {unknown[0]!r}; known are {', '.join(TASKS)}.")
        check_fields(self, "tasks", at_least={1: ("max_history", "max_text_tokens")})
        if any(rate < 0 for rate in self.mixture.values()) or not any(self.mixture.values()):
            raise UserError(f"--tasks.mixture {self.mixture}: rates are at least 0 and not all 0.")
