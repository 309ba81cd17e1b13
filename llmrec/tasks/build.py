"""The tasks themselves: what a row is, and the example it gives under a seeded random generator."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from llmrec.data import Catalog
from llmrec.tasks.config import TaskName, TasksConfig
from llmrec.tasks.render import Example, Renderer


class Task(Protocol):
    """Rows of one task; `example` draws a phrasing, and whatever else is random, from `rng`."""

    def __len__(self) -> int: ...

    def length(self, row: int) -> int:
        """About how many tokens the example has; examples of like length are batched together."""
        ...

    def example(self, row: int, rng: np.random.Generator) -> Example: ...


class _Prompted:
    """What all tasks share: a name, a renderer, a random phrasing."""

    name: TaskName

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.levels = len(renderer.vocabulary.ids)
        self.overhead = 12  # tokens of a phrasing, roughly: only for batching

    def prompt(self, rng: np.random.Generator, **values: str) -> str:
        phrasing = int(rng.integers(len(self.renderer.templates[self.name].templates)))
        return self.renderer.prompt(self.name, phrasing, **values)


class Sequential(_Prompted):
    """A user's training items -> the next one.

    Args:
        sequences: per user, int [n], training items in time order; users with fewer than 2 give no row.
        every_item: one row per user, a window of the history with each of its items learnt; otherwise one row
            per user and target.
    """

    name: TaskName = "sequential"

    def __init__(self, renderer: Renderer, sequences: Sequence[np.ndarray], every_item: bool) -> None:
        super().__init__(renderer)
        self.sequences = [sequence for sequence in sequences if len(sequence) > 1]
        self.every_item = every_item
        lengths = np.array([len(sequence) for sequence in self.sequences], dtype=np.int64)
        self.rows = np.arange(len(lengths)) if every_item else np.repeat(np.arange(len(lengths)), lengths - 1)
        # one target per row: rows of a user are its positions 1, 2, ...
        self.position = np.arange(len(self.rows)) - np.searchsorted(self.rows, self.rows) + 1

    def __len__(self) -> int:
        return len(self.rows)

    def _shown(self, row: int) -> int:
        """How many items the example holds, the target included."""
        seen = len(self.sequences[self.rows[row]]) - 1 if self.every_item else self.position[row]
        return int(min(seen, self.renderer.max_history)) + 1

    def length(self, row: int) -> int:
        return self.overhead + self._shown(row) * self.levels

    def example(self, row: int, rng: np.random.Generator) -> Example:
        sequence, shown = self.sequences[self.rows[row]], self._shown(row)
        # A long history is seen through a random window, so that its early items are learnt as well.
        end = int(rng.integers(shown, len(sequence) + 1)) if self.every_item else int(self.position[row]) + 1
        history = self.renderer.history(sequence[end - shown : end - 1])
        target = self.renderer.item_text[sequence[end - 1]]
        return Example(self.prompt(rng, history=history), target, ends=False, every_item=self.every_item)


class _ItemText(_Prompted):
    """Rows are items that have text; `texts[i]` is a list of ways to say item i."""

    def __init__(self, renderer: Renderer, texts: Sequence[list[str]]) -> None:
        super().__init__(renderer)
        self.texts = texts
        self.items = np.array([item for item, ways in enumerate(texts) if ways], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.items)

    def length(self, row: int) -> int:
        ways = self.texts[self.items[row]]
        return self.overhead + self.levels + max(map(len, ways)) // 4

    def say(self, item: int, rng: np.random.Generator) -> str:
        ways = self.texts[item]
        return ways[int(rng.integers(len(ways)))]


class ItemToCodes(_ItemText):
    """An item's text -> its semantic ID."""

    name: TaskName = "item-to-codes"

    def example(self, row: int, rng: np.random.Generator) -> Example:
        item = int(self.items[row])
        return Example(self.prompt(rng, text=self.say(item, rng)), self.renderer.item_text[item], ends=False)


class CodesToItem(_ItemText):
    """An item's semantic ID -> its text."""

    name: TaskName = "codes-to-item"

    def example(self, row: int, rng: np.random.Generator) -> Example:
        item = int(self.items[row])
        return Example(self.prompt(rng, item=self.renderer.item_text[item]), self.say(item, rng), ends=True)


class Requests:
    """What a customer might say to get an item.

    A short field (its title, brand, category, colour), all of these together, or some words of its whole text in
    their order, as people write who recall a few things; always in the form that `Renderer.request` gives.

    Args:
        catalog: the items.
        renderer: cleans and cuts text.
        max_tokens: of a request at most.
    """

    SHORT = 12  # words of a field that may be asked for as it is: not a description
    SOME = (2, 8)  # words drawn from the whole text, at least and at most

    def __init__(self, catalog: Catalog, renderer: Renderer, max_tokens: int) -> None:
        fields = [renderer.clip(catalog.texts("{" + field + "}"), max_tokens) for field in catalog.fields]
        told = [[renderer.request(text) for text in texts if text] for texts in zip(*fields, strict=True)]
        self.ways = [[text for text in texts if len(text.split()) <= self.SHORT] for texts in told]
        for texts in self.ways:
            if len(texts) > 1:
                texts.append(" ".join(texts))
        self.words = [" ".join(texts).split() for texts in told]

    def draw(self, item: int, rng: np.random.Generator) -> str:
        """One request for `item`, which has text."""
        ways, words = self.ways[item], self.words[item]
        if ways and rng.random() < 0.5:
            return ways[int(rng.integers(len(ways)))]
        count = min(len(words), int(rng.integers(self.SOME[0], self.SOME[1] + 1)))
        return " ".join(words[i] for i in sorted(rng.choice(len(words), count, replace=False)))


class Search(_Prompted):
    """A request in plain words -> an item that fits it; rows are items that have text."""

    name: TaskName = "search"

    def __init__(self, renderer: Renderer, requests: Requests) -> None:
        super().__init__(renderer)
        self.requests = requests
        self.items = np.array([item for item, words in enumerate(requests.words) if words], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.items)

    def length(self, row: int) -> int:
        return 2 * self.overhead + self.levels

    def example(self, row: int, rng: np.random.Generator) -> Example:
        item = int(self.items[row])
        query = self.requests.draw(item, rng)
        return Example(self.prompt(rng, query=query), self.renderer.item_text[item], ends=False)


class PersonalSearch(_Prompted):
    """A history and a request that its next item fits -> that item; rows are users, the target is random."""

    name: TaskName = "personal-search"

    def __init__(self, renderer: Renderer, sequences: Sequence[np.ndarray], requests: Requests) -> None:
        super().__init__(renderer)
        self.requests = requests
        kept = [(s, [i for i in range(1, len(s)) if requests.words[s[i]]]) for s in sequences if len(s) > 1]
        self.sequences = [(sequence, targets) for sequence, targets in kept if targets]

    def __len__(self) -> int:
        return len(self.sequences)

    def length(self, row: int) -> int:
        shown = min(len(self.sequences[row][0]), self.renderer.max_history)
        return 2 * self.overhead + shown * self.levels

    def example(self, row: int, rng: np.random.Generator) -> Example:
        sequence, targets = self.sequences[row]
        position = targets[int(rng.integers(len(targets)))]
        query = self.requests.draw(int(sequence[position]), rng)
        prompt = self.prompt(rng, history=self.renderer.history(sequence[:position]), query=query)
        return Example(prompt, self.renderer.item_text[sequence[position]], ends=False)


def item_texts(catalog: Catalog, renderer: Renderer, max_tokens: int) -> list[list[str]]:
    """Per item, the ways its text is told: the title, and all its fields together."""
    titles = renderer.clip(catalog.texts("{title}"), max_tokens)
    everything = renderer.clip(catalog.texts(catalog.whole_text), max_tokens)
    return [list(dict.fromkeys(text for text in ways if text)) for ways in zip(titles, everything, strict=True)]


def build_tasks(
    config: TasksConfig, catalog: Catalog, sequences: Sequence[np.ndarray], renderer: Renderer
) -> dict[TaskName, Task]:
    """The tasks of the mixture whose rate is not 0, over the training part only."""
    texts = item_texts(catalog, renderer, config.max_text_tokens)
    requests = Requests(catalog, renderer, config.max_text_tokens)
    makers: dict[TaskName, Callable[[], Task]] = {
        "sequential": lambda: Sequential(renderer, sequences, config.supervise == "every-item"),
        "item-to-codes": lambda: ItemToCodes(renderer, texts),
        "codes-to-item": lambda: CodesToItem(renderer, texts),
        "search": lambda: Search(renderer, requests),
        "personal-search": lambda: PersonalSearch(renderer, sequences, requests),
    }
    return {name: makers[name]() for name, rate in config.mixture.items() if rate > 0}
