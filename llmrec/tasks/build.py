"""The tasks of a mixture, over the training part of a log."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from llmrec.data import Catalog
from llmrec.errors import UserError
from llmrec.intentions.intentions import Intentions
from llmrec.tasks.config import TaskName, TasksConfig
from llmrec.tasks.items import CodesToItem, ItemToCodes, SharedCodes, item_texts
from llmrec.tasks.mixture import IGNORE, Collator, Mixture
from llmrec.tasks.render import Example, Renderer, Task
from llmrec.tasks.users import Chat, NextText, PersonalSearch, Preference, Requests, Search, Sequential, TitlesToItem

TITLE_TOKENS = 16
"""Tokens of a title in a history told in titles, at most."""


def build_tasks(
    config: TasksConfig,
    catalog: Catalog,
    sequences: Sequence[np.ndarray],
    renderer: Renderer,
    users: Sequence[str] = (),
    intentions: Intentions | None = None,
) -> dict[TaskName, Task]:
    """The tasks of the mixture whose rate is not 0.

    Args:
        config: the rates.
        catalog: the items.
        sequences: per user, int [n], training items in time order; of the validation and test parts nothing.
        renderer: of the same catalogue.
        users: the users' ids, for what `intentions` knows of them.
        intentions: what people want, in words.

    Raises:
        UserError: a task without a prompt file; preferences that nobody told.
    """
    wanted = [name for name, rate in config.mixture.items() if rate > 0]
    for name in wanted:
        if name not in renderer.templates:
            raise UserError(f"--tasks.mixture {name}: no {name}.yaml in --tasks.prompts {config.prompts}.")
    if "preference" in wanted and (intentions is None or not intentions.users):
        raise UserError(
            "--tasks.mixture preference: no user's preferences are known; set --intentions.source, or leave it out."
        )
    most = config.max_text_tokens
    titles = catalog.texts("{title}")

    @cache
    def texts() -> list[list[str]]:
        return item_texts(catalog, renderer, most)

    @cache
    def requests() -> Requests:
        return Requests(catalog, renderer, most, None if intentions is None else intentions.items)

    makers: dict[TaskName, Callable[[], Task]] = {
        "sequential": lambda: Sequential(renderer, sequences, config.supervise == "every-item"),
        "titles-to-item": lambda: TitlesToItem(renderer, sequences, renderer.clip(titles, TITLE_TOKENS)),
        "next-text": lambda: NextText(renderer, sequences, texts()),
        "item-to-codes": lambda: ItemToCodes(renderer, texts()),
        "codes-to-item": lambda: CodesToItem(renderer, texts()),
        "shared-codes": lambda: SharedCodes(renderer, renderer.codes, titles),
        "search": lambda: Search(renderer, requests()),
        "personal-search": lambda: PersonalSearch(renderer, sequences, requests()),
        "chat": lambda: Chat(renderer, sequences, requests()),
        "preference": lambda: Preference(renderer, sequences, users, (intentions or Intentions()).users, most),
    }
    return {name: makers[name]() for name in wanted}


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
