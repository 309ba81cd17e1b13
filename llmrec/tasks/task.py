"""What a task is: rows, each of which gives an example under a seeded random generator."""

from typing import Protocol

import numpy as np

from llmrec.tasks.config import TaskName
from llmrec.tasks.render import Example, Renderer


class Task(Protocol):
    """Rows of one task; `example` draws a phrasing, and whatever else is random, from `rng`."""

    def __len__(self) -> int: ...

    def length(self, row: int) -> int:
        """About how many tokens the example has; examples of like length are batched together."""
        ...

    def example(self, row: int, rng: np.random.Generator) -> Example: ...


class Prompted:
    """What all tasks share: a name, a renderer, a random phrasing."""

    name: TaskName

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.levels = len(renderer.vocabulary.ids)
        self.overhead = 12  # tokens of a phrasing, roughly: only for batching

    def prompt(self, rng: np.random.Generator, **values: str) -> str:
        """The prompt of the values in a phrasing drawn by `rng`."""
        phrasing = int(rng.integers(len(self.renderer.templates[self.name].templates)))
        return self.renderer.prompt(self.name, phrasing, **values)
