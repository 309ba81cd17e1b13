"""Examples -> one batch, padded or packed, with labels on what is learnt and nothing else.

Packed, several examples share a row, each with positions of its own from 0. From positions that start again,
transformers makes masks under which an example attends to itself alone, whatever the model's layers
(`find_packed_sequence_indices`); so the loss and its gradients are those of the padded batch (Krell et al.,
arXiv 2107.02027). `llmrec.train.packing` checks that a model abides by it.
"""

from collections.abc import Sequence

import numpy as np
import torch

from llmrec.tasks.render import Example, Renderer

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
    """

    def __init__(self, renderer: Renderer, max_length: int, packed: bool = False) -> None:
        self.renderer = renderer
        self.max_length = max_length
        self.packed = packed
        self.pad = renderer.tokenizer.pad_token_id or 0
        self._is_item = np.zeros(len(renderer.tokenizer), dtype=bool)
        self._is_item[renderer.vocabulary.all_ids] = True
        self._levels = len(renderer.vocabulary.ids)

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels` (-100 where nothing is learnt), packed also `position_ids`; all int64 [B, T]."""
        prompts = self.renderer.encode_prompts([example.prompt for example in examples])
        answers = self.renderer.encode_answers(examples)
        ids = [np.array((p + a)[: self.max_length], np.int64) for p, a in zip(prompts, answers, strict=True)]
        lengths = list(map(len, ids))
        room = min(max(ROOM, *lengths), self.max_length)
        rows = pack(lengths, room) if self.packed else [[i] for i in range(len(ids))]
        shape = len(rows), max(sum(lengths[i] for i in row) for row in rows)
        batch = {"input_ids": np.full(shape, self.pad, np.int64), "labels": np.full(shape, IGNORE, np.int64)}
        positions = np.zeros(shape, np.int64)
        for row, members in enumerate(rows):
            start = 0
            for i in members:
                place = row, slice(start, start + lengths[i])
                batch["input_ids"][place] = ids[i]
                batch["labels"][place] = self._labels(ids[i], len(prompts[i]), examples[i].every_item)
                positions[row, start:] = np.arange(shape[1] - start)  # padding continues the last example
                start += lengths[i]
        if self.packed:
            batch["position_ids"] = positions
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _labels(self, ids: np.ndarray, prompt: int, every_item: bool) -> np.ndarray:
        """int64 [T] of the token ids of one example, whose first `prompt` are its prompt."""
        learnt = np.arange(len(ids)) >= max(prompt, 1)  # nothing comes before the first token that could tell it
        if every_item:
            learnt[np.flatnonzero(self._is_item[ids[:prompt]])[self._levels :]] = True
        return np.where(learnt, ids, IGNORE)


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
