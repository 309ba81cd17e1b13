"""Batches for an encoder-decoder: the prompt for the encoder, the answer for the decoder."""

from collections.abc import Sequence

import numpy as np
import torch

from llmrec.tasks.mixture import IGNORE, Collator
from llmrec.tasks.render import Example, Renderer


class PairCollator(Collator):
    """Tokenizes a batch of examples for an encoder-decoder; one example per row, padded on the right.

    The labels follow the convention of `Collator`: position t of the decoder predicts the label at t + 1.

    Args:
        renderer: of the same catalogue and tokenizer.
        max_length: most tokens per prompt and per answer; longer ones are cut at the end.
        start: the token before every answer.
        with_items: also return which items are targets, and where they start.
        with_events: as for `Collator`.
    """

    def __init__(
        self, renderer: Renderer, max_length: int, start: int, with_items: bool = False, with_events: bool = False
    ) -> None:
        super().__init__(renderer, max_length, with_items=with_items, with_events=with_events)
        self.start = start

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Make one batch of B examples.

        Returns:
            int64 each: `input_ids` [B, T], the prompts; `attention_mask` [B, T], 0 for padding; `decoder_input_ids`
            [B, A], the start token and the answer; `labels` [B, A], the answer's token ids, -100 elsewhere; with items,
            `items` [B, A]: at the first token of each target item its row in the catalogue, and -1 elsewhere; with
            events, `events`: the same for `Example.events`.
        """
        prompts = self.renderer.encode_prompts([example.prompt for example in examples])
        answers = self.renderer.encode_answers(examples)
        read = [np.array(prompt[: self.max_length], np.int64) for prompt in prompts]
        written = [np.array([self.start, *answer[: self.max_length]], np.int64) for answer in answers]
        labels = [np.concatenate([[IGNORE], ids[1:]]) for ids in written]
        batch = {
            "input_ids": padded(read, self.pad),
            "attention_mask": padded([np.ones_like(ids) for ids in read], 0),
            "decoder_input_ids": padded(written, self.pad),
            "labels": padded(labels, IGNORE),
        }
        if self.with_items:
            targets = [self._at_items(own, example.items) for own, example in zip(labels, examples, strict=True)]
            batch["items"] = padded(targets, -1)
        if self.with_events:
            numbers = [self._at_items(own, example.events) for own, example in zip(labels, examples, strict=True)]
            batch["events"] = padded(numbers, -1)
        return {name: torch.from_numpy(array) for name, array in batch.items()}


def padded(rows: Sequence[np.ndarray], value: int) -> np.ndarray:
    """int64 [B, T]: rows of different lengths, filled up on the right with `value`."""
    filled = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for row, ids in enumerate(rows):
        filled[row, : len(ids)] = ids
    return filled
