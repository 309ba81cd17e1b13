"""Examples -> one left-padded batch, with labels on what is learnt and nothing else."""

from collections.abc import Sequence

import numpy as np
import torch

from llmrec.tasks.render import Example, Renderer

IGNORE = -100


def supervised_columns(labels: torch.Tensor) -> torch.Tensor:
    """Positions int64 [P] whose *next* token is a label in some row of labels [B, T]: where logits are needed."""
    return (labels[:, 1:] != IGNORE).any(0).nonzero().squeeze(1)


class Collator:
    """Tokenizes a batch of examples.

    Padding is on the left, as when the model is asked, and positions count from the first real token.

    Args:
        renderer: of the same catalogue and tokenizer.
        max_length: tokens per example at most; longer ones lose the end of their answer.
    """

    def __init__(self, renderer: Renderer, max_length: int) -> None:
        self.renderer = renderer
        self.max_length = max_length
        self.pad = renderer.tokenizer.pad_token_id or 0
        self._is_item = np.zeros(len(renderer.tokenizer), dtype=bool)
        self._is_item[renderer.vocabulary.all_ids] = True
        self._levels = len(renderer.vocabulary.ids)

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, `position_ids`, `labels`, all int64 [B, T]; unlabelled is -100."""
        prompts = self.renderer.encode_prompts([example.prompt for example in examples])
        answers = self.renderer.encode_answers(examples)
        rows = [(p + a)[: self.max_length] for p, a in zip(prompts, answers, strict=True)]
        length = max(map(len, rows))
        ids = np.full((len(rows), length), self.pad, dtype=np.int64)
        labels = np.full((len(rows), length), IGNORE, dtype=np.int64)
        mask = np.zeros((len(rows), length), dtype=np.int64)
        for i, (row, prompt, example) in enumerate(zip(rows, prompts, examples, strict=True)):
            start = length - len(row)
            ids[i, start:] = row
            mask[i, start:] = 1
            labels[i, start + len(prompt) :] = row[len(prompt) :]
            if example.every_item:
                history = np.flatnonzero(self._is_item[row[: len(prompt)]])[self._levels :] + start
                labels[i, history] = ids[i, history]
        positions = np.maximum(mask.cumsum(1) - 1, 0)
        arrays = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
