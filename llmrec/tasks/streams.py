"""The task sequential in two streams: in the items' codes of their texts, and in those of behaviour.

    The user bought, oldest first: <a_12><b_7><c_201>...                       -> the next item's codes of its text
    The user bought, oldest first: <behaviour_a_3><behaviour_b_40>...          -> the next item's codes of behaviour

EAGER (arXiv 2406.14017) reads a history once and has a decoder for each set of codes. Here one model does both, and
each stream writes the history in its own codes, so that each item of a history is a target in one pass.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np

from llmrec.tasks.examples import Sequential
from llmrec.tasks.render import Example, Renderer

BEHAVIOUR = "behaviour_"
"""Begins the name of a token of behaviour, before the prefix of the item tokens."""


class BothStreams:
    """The rows of both streams, those of the texts first.

    Args:
        texts: the task in the codes of the texts.
        behaviour: the task in the codes of behaviour. The items of its examples teach these codes only, neither a dense
            head nor, with `train.distill`, what a teacher says of them.
    """

    def __init__(self, texts: Sequential, behaviour: Sequential) -> None:
        self.texts = texts
        self.behaviour = behaviour

    @classmethod
    def of(cls, renderer: Renderer, second: Renderer, sequences: Sequence[np.ndarray], every_item: bool) -> Self:
        """The rows of these sequences; arguments as for `Sequential`.

        Items without codes of behaviour are left out of the second stream.
        """
        known = second.codes[:, 0] >= 0
        return cls(
            Sequential(renderer, sequences, every_item),
            Sequential(second, [sequence[known[sequence]] for sequence in sequences], every_item),
        )

    def __len__(self) -> int:
        return len(self.texts) + len(self.behaviour)

    def length(self, row: int) -> int:
        """As `Task.length`."""
        first = len(self.texts)
        return self.texts.length(row) if row < first else self.behaviour.length(row - first)

    def example(self, row: int, rng: np.random.Generator) -> Example:
        """As `Task.example`."""
        if row < len(self.texts):
            return self.texts.example(row, rng)
        return replace(self.behaviour.example(row - len(self.texts), rng), items=(), events=())
