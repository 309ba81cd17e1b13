"""What training will see: real examples of each task, with what is learnt marked."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmrec.tasks.collate import IGNORE, Collator
from llmrec.tasks.config import TaskName, TasksConfig
from llmrec.tasks.mixture import Mixture
from llmrec.tasks.render import Example, Renderer
from llmrec.tasks.task import Task

OPEN, CLOSE = "\u27e6", "\u27e7"


@dataclass(frozen=True)
class Span:
    """A piece of an example.

    Attributes:
        text: as the tokenizer decodes it.
        trained: whether its tokens are learnt.
    """

    text: str
    trained: bool


def show_tasks(
    tasks: Mapping[TaskName, Task], config: TasksConfig, renderer: Renderer, context: int, n: int, seed: int
) -> list[dict[str, Any]]:
    """Per task `task`, `paper`, `rate`, `rows`, `examples_per_epoch` and `examples`: `tokens` and `spans` of n of them.

    Args:
        tasks: those of the mixture.
        config: its rates.
        renderer: of the same catalogue and tokenizer.
        context: tokens per example at most.
        n: examples of each task; rows and phrasings are drawn by the seed.
        seed: of the draws; that of a training shows the mixture of its first epoch.
    """
    counts = Mixture(dict(tasks), config, 1, 1, seed).counts
    collator = Collator(renderer, context)
    shown = []
    for name, task in tasks.items():
        rng = np.random.default_rng(seed)
        rows = rng.choice(len(task), min(n, len(task)), replace=False)
        spans = [spans_of(task.example(int(row), rng), collator) for row in rows]
        shown.append(
            {
                "task": name,
                "paper": renderer.templates[name].paper,
                "rate": config.mixture[name],
                "rows": len(task),
                "examples_per_epoch": counts[name],
                "examples": [{"tokens": tokens, "spans": [asdict(span) for span in parts]} for tokens, parts in spans],
            }
        )
    return shown


def spans_of(example: Example, collator: Collator) -> tuple[int, list[Span]]:
    """How many tokens an example has, and its text cut where learning begins and ends, from the tensors themselves."""
    batch = collator([example])
    ids, learnt = batch["input_ids"][0].tolist(), (batch["labels"][0] != IGNORE).tolist()
    edges = [0, *(at for at in range(1, len(ids)) if learnt[at] != learnt[at - 1]), len(ids)]
    decode = collator.renderer.tokenizer.decode
    spans = [Span(decode(ids[a:b]), learnt[a]) for a, b in itertools.pairwise(edges)]
    return len(ids), spans


def marked(spans: Sequence[Mapping[str, Any]]) -> str:
    """The text with what is learnt in double brackets."""
    return "".join(f"{OPEN}{span['text']}{CLOSE}" if span["trained"] else span["text"] for span in spans)
