"""The examples of a training run as one fixed list, and the batches that are made of them.

The list depends on the configuration and the seed alone, not on the batch size of a process or the number of
processes. So a resumed run, and a run on more processes, see the same examples in the same steps.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from llmrec.data import Catalog, EvalExamples
from llmrec.errors import UserError
from llmrec.intentions.intentions import Intentions
from llmrec.tasks.config import TaskName, TasksConfig
from llmrec.tasks.examples import (
    Chat,
    CodesToItem,
    ItemToCodes,
    NextText,
    PersonalSearch,
    Preference,
    Requests,
    Search,
    Sequential,
    SharedCodes,
    TitlesToItem,
    item_texts,
)
from llmrec.tasks.render import Example, Renderer, Task

WINDOW = 64  # global batches that are sorted by length together


class Mixture:
    """A map-style dataset over all epochs, in the order it is to be consumed.

    Args:
        tasks: by name.
        config: the rates.
        epochs: how often the mixture is drawn.
        global_batch: examples per optimizer step, over all processes; like lengths share a step.
        seed: of the draw, the order, and each example's own randomness.

    Raises:
        UserError: not one example, as when every user has a single training item and no item has text.
    """

    def __init__(
        self, tasks: dict[TaskName, Task], config: TasksConfig, epochs: int, global_batch: int, seed: int
    ) -> None:
        self.tasks = list(tasks.values())
        self.seed = seed
        self.plan = np.empty((0, 2), np.int64)
        for epoch in range(epochs):
            begun = -len(self.plan) % global_batch
            self.plan = np.concatenate([self.plan, self._epoch(list(tasks), config, epoch, global_batch, begun)])
        # A last step of fewer examples would fall on some processes only; a run smaller than one step keeps it.
        self.plan = self.plan[: len(self.plan) // global_batch * global_batch or None]
        self.counts = {name: int((self.plan[:, 0] == i).sum()) for i, name in enumerate(tasks)}
        if not len(self.plan):
            raise UserError(
                "Nothing to train on: no user has two training items and no item has text for the chosen tasks "
                "(--tasks.mixture); lower --data.user_core, or check the log."
            )

    def _epoch(
        self, names: list[TaskName], config: TasksConfig, epoch: int, global_batch: int, begun: int
    ) -> np.ndarray:
        """int64 [n, 2]: (task, row), shuffled, then grouped by length within windows of whole batches.

        The first `begun` examples fill up the batch that the epoch before left short.
        """
        rng = np.random.default_rng((self.seed, epoch))
        parts = []
        for index, (name, task) in enumerate(zip(names, self.tasks, strict=True)):
            whole, fraction = divmod(config.mixture[name], 1)
            draws = [np.arange(len(task))] * int(whole)
            draws.append(rng.permutation(len(task))[: round(fraction * len(task))])
            rows = np.concatenate(draws)
            parts.append(np.stack([np.full(len(rows), index), rows], axis=1))
        plan = rng.permutation(np.concatenate(parts))
        lengths = np.array([self.tasks[task].length(row) for task, row in plan], dtype=np.int64)
        window = WINDOW * global_batch
        # Only whole batches move, so that the short ones at both ends stay there.
        for start in range(begun, len(plan) - global_batch + 1, window):
            stop = min(start + window, start + (len(plan) - start) // global_batch * global_batch)
            by_length = start + np.argsort(lengths[start:stop], kind="stable")
            batches = rng.permutation(by_length.reshape(-1, global_batch))
            plan[start:stop] = plan[batches.ravel()]
        return plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Example:
        task, row = self.plan[index]
        return self.tasks[task].example(int(row), np.random.default_rng((self.seed, int(index), 1)))


def validation_examples(renderer: Renderer, cases: EvalExamples) -> Sequence[Example]:
    """History -> target of each case in the first phrasing, the one that answers are asked with."""
    return [
        Example(
            renderer.prompt("sequential", 0, history=renderer.history(history)),
            renderer.item_text[target],
            ends=False,
            items=(int(target),),
        )
        for history, target in zip(cases.histories, cases.targets, strict=True)
    ]


IGNORE = -100


ROOM = 64
"""Tokens of a packed row, or as many as the longest example has: longer rows waste less on padding, and more on
attention, whose masked part is computed too."""


def predicting(labels: torch.Tensor) -> torch.Tensor:
    """bool [B, T]: the positions whose *next* token is a label in labels [B, T]; where logits are needed."""
    return torch.nn.functional.pad(labels[:, 1:] != IGNORE, (0, 1))


class Collator:
    """Tokenizes a batch of examples.

    Padding is on the right, where causal attention never looks; so neither form needs an attention mask.

    Args:
        renderer: of the same catalogue and tokenizer.
        max_length: tokens per example at most; longer ones lose the end of their answer.
        packed: put several examples into a row; else each has its own.
        with_items: say also which items are learnt, and where.
    """

    def __init__(self, renderer: Renderer, max_length: int, packed: bool = False, with_items: bool = False) -> None:
        self.renderer = renderer
        self.max_length = max_length
        self.packed = packed
        self.with_items = with_items
        self.pad = renderer.tokenizer.pad_token_id or 0
        self._is_item = np.zeros(len(renderer.tokenizer), dtype=bool)
        self._is_item[renderer.vocabulary.all_ids] = True
        self._levels = len(renderer.vocabulary.ids)

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """A batch, int64 [B, T] each.

        Returns:
            `input_ids`; `labels`, -100 where nothing is learnt; packed also `position_ids`; with items also `items`,
            the row of the catalogue where the first token of a learnt item stands, else -1.
        """
        prompts = self.renderer.encode_prompts([example.prompt for example in examples])
        answers = self.renderer.encode_answers(examples)
        ids = [np.array((p + a)[: self.max_length], np.int64) for p, a in zip(prompts, answers, strict=True)]
        lengths = list(map(len, ids))
        room = min(max(ROOM, *lengths), self.max_length)
        rows = pack(lengths, room) if self.packed else [[i] for i in range(len(ids))]
        shape = len(rows), max(sum(lengths[i] for i in row) for row in rows)
        batch = {"input_ids": np.full(shape, self.pad, np.int64), "labels": np.full(shape, IGNORE, np.int64)}
        positions, items = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
        for row, members in enumerate(rows):
            start = 0
            for i in members:
                place = row, slice(start, start + lengths[i])
                batch["input_ids"][place] = ids[i]
                labels = self._labels(ids[i], len(prompts[i]), examples[i].every_item)
                batch["labels"][place] = labels
                items[place] = self._items(labels, examples[i].items)
                positions[row, start:] = np.arange(shape[1] - start)  # padding continues the last example
                start += lengths[i]
        if self.packed:
            batch["position_ids"] = positions
        if self.with_items:
            batch["items"] = items
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _labels(self, ids: np.ndarray, prompt: int, every_item: bool) -> np.ndarray:
        """int64 [T] of the token ids of one example, whose first `prompt` are its prompt."""
        learnt = np.arange(len(ids)) >= max(prompt, 1)  # nothing comes before the first token that could tell it
        if every_item:
            learnt[np.flatnonzero(self._is_item[ids[:prompt]])[self._levels :]] = True
        return np.where(learnt, ids, IGNORE)

    def _items(self, labels: np.ndarray, items: Sequence[int]) -> np.ndarray:
        """int64 [T]: at the first token of each learnt item its row, else -1; an item that was cut off has none."""
        tokens = np.flatnonzero((labels != IGNORE) & self._is_item[labels]) if items else np.empty(0, np.int64)
        starts = tokens[:: self._levels][: len(tokens) // self._levels]
        rows = np.full(len(labels), -1, np.int64)
        rows[starts] = items[: len(starts)]
        return rows


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """The numbers of examples that share each row of at most `room` tokens: the longest first, each where it fits."""
    rows: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, free in enumerate(left) if free >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(room)
        rows[row].append(i)
        left[row] -= lengths[i]
    return rows


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
