"""From a task's values to the exact text and tokens a model sees, the same in training and when it is asked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llmrec.errors import UserError
from llmrec.model.tokens import ItemVocabulary
from llmrec.tasks.chat import chat_format
from llmrec.tasks.config import TaskName
from llmrec.tasks.template import Template, turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Example:
    """One rendered example.

    Attributes:
        prompt: all the text before the answer, chat markers included.
        answer: the text to learn.
        ends: whether the end-of-sequence token follows the answer (text answers; a semantic ID has a fixed length).
        every_item: whether the items of the prompt's history, but the first, are learnt too.
    """

    prompt: str
    answer: str
    ends: bool
    every_item: bool = False


class Renderer:
    """Renders prompts for one tokenizer, catalogue and set of templates.

    Args:
        tokenizer: holds the item tokens.
        vocabulary: those tokens.
        codes: int [N, L], the semantic ID of every item.
        templates: per task name.
        max_history: most recent items shown.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        vocabulary: ItemVocabulary,
        codes: np.ndarray,
        templates: dict[str, Template],
        max_history: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.codes = codes
        self.templates = templates
        self.max_history = max_history
        self.item_text = [vocabulary.text(row) for row in codes]
        self._chat = bool(tokenizer.chat_template)
        self._chat_formats: dict[int, list[str]] = {}
        # Whether the tokenizer puts a beginning of sequence before plain text; a chat template writes its own.
        front = [] if self._chat else tokenizer("")["input_ids"][:1]
        self._start = [token for token in front if token == tokenizer.bos_token_id]
        # Longest first, so that no token hides inside another's remains.
        reserved = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self._reserved = re.compile("|".join(map(re.escape, reserved)))

    def clean(self, text: str) -> str:
        """`text` without anything the tokenizer would read as an item token or a control token, on one line."""
        text = " ".join(text.split())
        # More than once for tokens that contain a space: taking one out may bring the parts of another together.
        while (cleaned := " ".join(self._reserved.sub(" ", text).split())) != text:
            text = cleaned
        return text

    def clip(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Cleaned texts, each cut to at most `max_tokens` tokens."""
        cleaned = [self.clean(text) for text in texts]
        if not cleaned:
            return []
        encoded = self.tokenizer(cleaned, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [
            # Up to where the first token too many starts: a character of several tokens goes as a whole.
            text[: offsets[max_tokens][0]].rstrip() if len(offsets) > max_tokens else text
            for text, offsets in zip(cleaned, encoded["offset_mapping"], strict=True)
        ]

    def request(self, text: str) -> str:
        """A request in plain words as prompts hold it, in training and when asked: cleaned, in lower case."""
        return self.clean(text.lower())

    def history(self, items: Sequence[int] | np.ndarray) -> str:
        """The item tokens of the last `max_history` items, oldest first."""
        return "".join(self.item_text[item] for item in items[-self.max_history :])

    def prompt(self, task: str, phrasing: int, **values: str) -> str:
        """The full prompt of a task, in the tokenizer's chat format when it has one; else its turns on one line."""
        spoken = self.templates[task].fill(phrasing, values)
        if not self._chat:
            return " ".join([*(turn.strip() for turn in spoken[:-1]), spoken[-1]])
        around = self.chat_format(len(spoken))
        said = [turn.strip() for turn in spoken]
        return "".join(chain.from_iterable(zip(around[:-1], said, strict=True))) + around[-1]

    def chat_format(self, number: int) -> list[str]:
        """What the chat template writes before, between and behind so many turns, the user's first and last.

        The template is rendered once for each number of turns, under limits of time and memory, with marks in place of
        the turns. It never sees what a user asks, so that no request can make it take longer.

        Raises:
            UserError: the template fails, takes too long, writes too much, or does not write each turn once, in order.
        """
        if number not in self._chat_formats:
            self._chat_formats[number] = chat_format(self.tokenizer, number)
        return self._chat_formats[number]

    def check_chat_format(self, subject: str) -> None:
        """Render the chat template for all numbers of turns that prompts have.

        Raises:
            UserError: as `chat_format`; the message begins with `subject`.
        """
        if not self._chat:
            return
        phrasings = [phrasing for template in self.templates.values() for phrasing in template.templates]
        try:
            for number in {len(turns(phrasing)) for phrasing in phrasings}:
                self.chat_format(number)
        except UserError as error:
            raise UserError(f"{subject}: {error.with_flags}") from None

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts; a plain one starts with the beginning-of-sequence token if the tokenizer does so."""
        # Not verbose: whether a prompt fits is checked by the callers, with an error of ours.
        encoded = self.tokenizer(list(prompts), add_special_tokens=False, verbose=False)["input_ids"]
        return [self._start + ids for ids in encoded]

    def encode_answers(self, examples: Sequence[Example]) -> list[list[int]]:
        """Token ids of the answers, with the end-of-sequence token where it belongs."""
        encoded = self.tokenizer([example.answer for example in examples], add_special_tokens=False)["input_ids"]
        eos = self.tokenizer.eos_token_id
        return [
            [*ids, eos] if example.ends and eos is not None else ids
            for ids, example in zip(encoded, examples, strict=True)
        ]


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
