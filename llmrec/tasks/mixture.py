"""The examples of a training run as one fixed list, and the batches made from them.

The list depends on the data, the configuration with its seed, and the global batch size (examples per optimizer step),
not on how processes share a batch. So a resumed run, or a run with the same global batch on more processes, trains on
the same examples in the same steps.
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
from llmrec.tasks.streams import BothStreams

WINDOW = 64  # number of global batches whose examples are sorted by length together


class Mixture:
    """A map-style dataset of the examples of all epochs, in training order.

    Args:
        tasks: task name -> task.
        config: the rates.
        epochs: how often the mixture is drawn.
        global_batch: examples per optimizer step, over all processes. Examples of similar length share a step.
        seed: of the drawn rows, of their order, and of the random choices in each example.

    Raises:
        UserError: there is no example, e.g. because every user has one training item and no item has text.
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
        # Drop an incomplete last step: some processes would get no examples. A run shorter than one step keeps it.
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
        """The examples of one epoch, int64 [n, 2] of (task, row): shuffled, then sorted by length inside windows.

        A window is `WINDOW` whole batches; the batches of a window are shuffled again. The first `begun` examples
        complete the last batch of the previous epoch.
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
        # Only whole batches are sorted; the incomplete batches at both ends keep their places.
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
    """One sequential example (history -> target) per case, in the first phrasing, which the recommender uses."""
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
"""Tokens per packed row, or the length of the longest example if that is more. Longer rows have less padding but cost
more attention, because attention between different examples is computed and then masked."""


def predicting(labels: torch.Tensor) -> torch.Tensor:
    """The positions whose *next* token is labelled, where logits are needed: bool [B, T] from labels int64 [B, T]."""
    return torch.nn.functional.pad(labels[:, 1:] != IGNORE, (0, 1))


class Collator:
    """Tokenizes a batch of examples.

    Padding is on the right, where causal attention never looks. So no batch, packed or not, needs an attention mask.

    Args:
        renderer: of the same catalogue and tokenizer.
        max_length: most tokens per example; a longer one is cut at the end of its answer.
        packed: put several examples into one row; otherwise each example has its own row.
        with_items: also return which items are targets, and where they start.
        with_events: the same for their numbers among the targets of all training sequences.
        one_row: put all examples of a packed batch into one row, as flash attention needs it: it reads where examples
            begin from the positions of a single row only.
    """

    def __init__(
        self,
        renderer: Renderer,
        max_length: int,
        packed: bool = False,
        with_items: bool = False,
        with_events: bool = False,
        one_row: bool = False,
    ) -> None:
        self.renderer = renderer
        self.max_length = max_length
        self.packed = packed
        self.one_row = packed and one_row
        self.with_items = with_items
        self.with_events = with_events
        self.pad = renderer.tokenizer.pad_token_id or 0
        self._is_item = np.zeros(len(renderer.tokenizer), dtype=bool)
        self._is_item[renderer.codes_of_both.all_ids] = True
        self._begins, self._ends = np.zeros_like(self._is_item), np.zeros_like(self._is_item)
        for stream in (renderer, renderer.behaviour):
            if stream is not None:
                self._begins[stream.vocabulary.ids[0]] = True
                self._ends[stream.vocabulary.ids[-1]] = True

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Make one batch.

        Args:
            examples: of the batch; B rows hold all of them.

        Returns:
            int64 [B, T] each: `input_ids`; `labels`, the token ids, or -100 where a token is no target; if packed,
            `position_ids`; with items, `items`: at the first token of each target item its row in the catalogue, and -1
            elsewhere; with events, `events`: the same for `Example.events`.
        """
        prompts = self.renderer.encode_prompts([example.prompt for example in examples])
        answers = self.renderer.encode_answers(examples)
        ids = [np.array((p + a)[: self.max_length], np.int64) for p, a in zip(prompts, answers, strict=True)]
        lengths = list(map(len, ids))
        room = sum(lengths) if self.one_row else min(max(ROOM, *lengths), self.max_length)
        rows = pack(lengths, room) if self.packed else [[i] for i in range(len(ids))]
        shape = len(rows), max(sum(lengths[i] for i in row) for row in rows)
        batch = {"input_ids": np.full(shape, self.pad, np.int64), "labels": np.full(shape, IGNORE, np.int64)}
        positions, items, events = np.zeros(shape, np.int64), np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
        for row, members in enumerate(rows):
            start = 0
            for i in members:
                place = row, slice(start, start + lengths[i])
                batch["input_ids"][place] = ids[i]
                labels = self._labels(ids[i], len(prompts[i]), examples[i])
                batch["labels"][place] = labels
                items[place] = self._at_items(labels, examples[i].items)
                events[place] = self._at_items(labels, examples[i].events)
                # The padding continues the positions of the last example.
                positions[row, start:] = np.arange(shape[1] - start)
                start += lengths[i]
        if self.packed:
            batch["position_ids"] = positions
        if self.with_items:
            batch["items"] = items
        if self.with_events:
            batch["events"] = events
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _labels(self, ids: np.ndarray, prompt: int, example: Example) -> np.ndarray:
        """Labels int64 [T] of one example with token ids int64 [T]; its first `prompt` tokens are the prompt."""
        learnt = np.arange(len(ids)) >= max(prompt, 1)  # no position predicts the first token
        if example.every_item:
            spelt = np.flatnonzero(self._is_item[ids[:prompt]])
            learnt[spelt[np.cumsum(self._begins[ids[spelt]]) > example.given]] = True
        return np.where(learnt, ids, IGNORE)

    def _at_items(self, labels: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
        """int64 [T]: the number of each target item at its first token, else -1; an item that was cut off has none."""
        tokens = np.flatnonzero((labels != IGNORE) & self._is_item[labels]) if numbers else np.empty(0, np.int64)
        starts = tokens[self._begins[labels[tokens]]][: int(self._ends[labels[tokens]].sum())]
        found = np.full(len(labels), -1, np.int64)
        found[starts] = numbers[: len(starts)]
        return found


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Pack examples into rows of at most `room` tokens by first-fit decreasing: the example numbers of each row."""
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
"""Task titles-to-item cuts a title to this many tokens."""


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
        catalog: the N items.
        sequences: per user, int [n], training items in time order; without validation and test events.
        renderer: of the same catalogue.
        users: the users' ids, in the order of `sequences`; needed for the preferences in `intentions`.
        intentions: intentions of items and preferences of users, in words.

    Raises:
        UserError: a task has no prompt file, or the mixture has the task preference and no user has preferences.
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

    def sequential() -> Task:
        every_item, second = config.supervise == "every-item", renderer.behaviour
        if second is None:
            return Sequential(renderer, sequences, every_item)
        return BothStreams.of(renderer, second, sequences, every_item)

    @cache
    def texts() -> list[list[str]]:
        return item_texts(catalog, renderer, most)

    @cache
    def requests() -> Requests:
        return Requests(catalog, renderer, most, None if intentions is None else intentions.items)

    makers: dict[TaskName, Callable[[], Task]] = {
        "sequential": sequential,
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
        trained: whether its tokens are targets of the loss.
    """

    text: str
    trained: bool


def show_tasks(
    tasks: Mapping[TaskName, Task], config: TasksConfig, renderer: Renderer, context: int, n: int, seed: int
) -> list[dict[str, Any]]:
    """Statistics and example texts of each task.

    Args:
        tasks: those of the mixture.
        config: its rates.
        renderer: of the same catalogue and tokenizer.
        context: most tokens per example.
        n: most examples of each task.
        seed: of the drawn rows and phrasings.

    Returns:
        One dict per task with `task`, `paper`, `rate`, `rows`, `examples_per_epoch` and `examples`, a list of up to n
        dicts with `tokens` (their number) and `spans` (the fields of each `Span`).
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
    """The number of tokens of an example, and its spans, cut where the labels of its batch begin and end."""
    batch = collator([example])
    ids, learnt = batch["input_ids"][0].tolist(), (batch["labels"][0] != IGNORE).tolist()
    edges = [0, *(at for at in range(1, len(ids)) if learnt[at] != learnt[at - 1]), len(ids)]
    decode = collator.renderer.tokenizer.decode
    spans = [Span(decode(ids[a:b]), learnt[a]) for a, b in itertools.pairwise(edges)]
    return len(ids), spans


def marked(spans: Sequence[Mapping[str, Any]]) -> str:
    """The text, with the trained spans in double brackets."""
    return "".join(f"{OPEN}{span['text']}{CLOSE}" if span["trained"] else span["text"] for span in spans)
