"""From the values of a task to the exact text and tokens that the model reads, in training and in recommendation.

The chat template of a tokenizer can be untrusted code from its author. So a child process renders it, with limits on
time, memory and output, and the template never sees a request.
"""

import json
import os
import re
import resource
import select
import signal
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl

from llmrec.errors import UserError
from llmrec.model.tokens import ItemVocabulary
from llmrec.tasks.config import TaskName, Template, turns
from llmrec.tasks.users import UserTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 10
"""Time limit of a chat template, in seconds."""
MEMORY = 2**29
"""Memory limit of a chat template, in bytes."""
OUTPUT = 2**20
"""Output limit of a chat template, in characters."""
MARK = "llmrec turn {} 7f3a"
"""Placeholder that stands for a turn while the chat template is rendered."""


def chat_format(tokenizer: "PreTrainedTokenizerBase", turns: int) -> list[str]:
    """The texts that the chat template writes before, between and after the turns of a conversation.

    Args:
        tokenizer: with a chat template.
        turns: their number, odd. User and assistant alternate; the user has the first and the last turn.

    Returns:
        `turns` + 1 texts.

    Raises:
        UserError: the template fails, takes too long, takes too much memory, writes too much, or does not write each
            turn once, in order.
    """
    marks = [MARK.format(at) for at in range(turns)]
    left, found = _render_apart(tokenizer, marks), []
    for mark in marks:
        before, sign, left = left.partition(mark)
        if not sign:
            raise UserError("the tokenizer's chat template leaves out or moves a turn of the conversation; mend it.")
        found.append(before)
    if any(mark in left for mark in marks):
        raise UserError("the tokenizer's chat template writes a turn of the conversation twice; mend it.")
    return [*found, left]


def _render_apart(tokenizer: "PreTrainedTokenizerBase", turns: list[str]) -> str:
    """Render a conversation in a child process and return its text.

    Raises:
        UserError: the template fails or exceeds a limit.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child needs no lock that another thread may hold
        child = os.fork()
    if not child:
        _render_in_child(tokenizer, turns, reading, writing)
    os.close(writing)
    try:
        answer = _read(reading)
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if answer is None:
        raise UserError(
            f"the tokenizer's chat template takes more than {SECONDS} seconds, {MEMORY >> 20} MiB or {OUTPUT:,} "
            "characters; use another tokenizer, or mend its template."
        )
    if "error" in answer:
        raise UserError(f"the tokenizer's chat template fails: {answer['error']:.200}; mend it.")
    return str(answer["text"])


def _render_in_child(tokenizer: "PreTrainedTokenizerBase", turns: list[str], reading: int, writing: int) -> None:
    """Render, write the answer as JSON to the pipe `writing`, and end the process."""
    try:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        with suppress(OSError):  # only Linux has this file
            used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        answer = {"text": _render(tokenizer, turns)}
        if len(answer["text"]) > OUTPUT:
            os._exit(1)
    except MemoryError:
        os._exit(1)
    except BaseException as error:
        answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
    try:
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            json.dump(answer, pipe)
    finally:
        os._exit(0)


def _render(tokenizer: "PreTrainedTokenizerBase", turns: list[str]) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]
    return str(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, enable_thinking=False)
    )


def _read(pipe: int) -> dict[str, str] | None:
    """The answer of the child process; None if there is none within `SECONDS`, or it is too long or not JSON."""
    content, end = bytearray(), time.monotonic() + SECONDS
    while (left := end - time.monotonic()) > 0:
        ready, _, _ = select.select([pipe], [], [], left)
        if not ready:
            return None
        piece = os.read(pipe, 2**16)
        if not piece:
            break
        content += piece
        if len(content) > 8 * OUTPUT:
            return None
    try:
        return dict(json.loads(content))
    except ValueError:
        return None


@dataclass(frozen=True)
class Example:
    """One rendered example.

    Attributes:
        prompt: all the text before the answer, including the markers of the chat template.
        answer: the text that the model learns to write.
        ends: whether the end-of-sequence token follows the answer. It follows a text; a semantic ID has a fixed length.
        every_item: whether the items of the prompt's history, except the first `given`, are targets too.
        items: rows of the catalogue of the target items, in the order of their tokens.
        events: numbers of the target items among the targets of all training sequences, in the same order (see
            `first_target`); empty if the example asks for more than the next item of a history.
        given: as above; at least 1.
    """

    prompt: str
    answer: str
    ends: bool
    every_item: bool = False
    items: tuple[int, ...] = ()
    events: tuple[int, ...] = ()
    given: int = 1


class Renderer:
    """Renders prompts for one tokenizer, catalogue and set of templates.

    Args:
        tokenizer: with the item tokens.
        vocabulary: the item tokens.
        codes: int [N, L], the semantic ID of every item; -1 in the row of an item that has none, of which nothing is
            written.
        templates: task name -> template.
        max_history: a prompt shows at most this many items of a history, the most recent ones.
        users: the tokens of users, which begin each history; None: no such tokens.
        titles: of the N items; needed with `title_tokens`.
        title_tokens: each item of a history is followed by at most this many tokens of its title.
        behaviour: renders prompts in the items' codes of behaviour; None: they have no such codes.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        vocabulary: ItemVocabulary,
        codes: np.ndarray,
        templates: dict[str, Template],
        max_history: int,
        users: UserTokens | None = None,
        behaviour: "Renderer | None" = None,
        titles: Sequence[str] | pl.Series = (),
        title_tokens: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.codes = codes
        self.templates = templates
        self.max_history = max_history
        self.users = users
        self.behaviour = behaviour
        self.titles = titles
        self.title_tokens = title_tokens
        self._titled: dict[int, str] = {}
        self.item_text = [vocabulary.text(row) if row[0] >= 0 else "" for row in codes]
        self._chat = bool(tokenizer.chat_template)
        self._chat_formats: dict[int, list[str]] = {}
        # The beginning-of-sequence token, if the tokenizer puts it before plain text. A chat template writes its own.
        front = [] if self._chat else tokenizer("")["input_ids"][:1]
        self._start = [token for token in front if token == tokenizer.bos_token_id]
        # Longest first: a shorter token must not match inside a longer one and leave the rest of it in the text.
        reserved = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self._reserved = re.compile("|".join(map(re.escape, reserved)))

    @property
    def codes_of_both(self) -> ItemVocabulary:
        """The item tokens, and after their levels those of the tokens of behaviour."""
        own = self.vocabulary
        second = None if self.behaviour is None else self.behaviour.vocabulary
        return own if second is None else ItemVocabulary([*own.names, *second.names], [*own.ids, *second.ids])

    @property
    def new_ids(self) -> np.ndarray:
        """int64 [M], the ids of all tokens that llmrec added to the tokenizer: of items, of behaviour, of users."""
        ids = self.codes_of_both.all_ids
        return ids if self.users is None else np.concatenate([ids, self.users.vocabulary.all_ids])

    def clean(self, text: str) -> str:
        """`text` on one line, without anything that the tokenizer would read as an item token or a control token."""
        text = " ".join(text.split())
        # Repeat for tokens that contain a space: removing one token can join the parts of another.
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
            # Cut where token number max_tokens + 1 starts. A character of several tokens is removed as a whole.
            text[: offsets[max_tokens][0]].rstrip() if len(offsets) > max_tokens else text
            for text, offsets in zip(cleaned, encoded["offset_mapping"], strict=True)
        ]

    def request(self, text: str) -> str:
        """The form of a request in prompts, in training and in recommendation: cleaned, in lower case."""
        return self.clean(text.lower())

    def shown(self, items: Sequence[int] | np.ndarray) -> Sequence[int] | np.ndarray:
        """The part of a history that a prompt shows: the last `max_history` items, oldest first."""
        return items[-self.max_history :]

    def history(self, items: Sequence[int] | np.ndarray, known: Sequence[int] | np.ndarray | None = None) -> str:
        """What a prompt says of the items that it shows, oldest first; the user's tokens, if any, come before them.

        Args:
            items: the whole history, rows of the catalogue.
            known: the events that the user's tokens are made of; default: `items`.
        """
        user = "" if self.users is None else self.users.text(items if known is None else known)
        return user + "".join(self.in_history(item) for item in self.shown(items))

    @property
    def most_of_title(self) -> int:
        """Most tokens that a title takes behind an item of a history, the spaces around it included."""
        return self.title_tokens + 2 if self.title_tokens else 0

    def in_history(self, item: int) -> str:
        """What a history says of an item, a row of the catalogue: its tokens, and the beginning of its title."""
        tokens, item = self.item_text[item], int(item)
        if not self.title_tokens or not tokens:
            return tokens
        if item not in self._titled:
            (title,) = self.clip([self.titles[item]], self.title_tokens)
            self._titled[item] = f"{tokens} {title} " if title else tokens
        return self._titled[item]

    def prompt(self, task: str, phrasing: int, **values: str) -> str:
        """The full prompt of a task: in the tokenizer's chat format if it has one, otherwise the turns on one line."""
        spoken = self.templates[task].fill(phrasing, values)
        if not self._chat:
            return " ".join([*(turn.strip() for turn in spoken[:-1]), spoken[-1]])
        around = self.chat_format(len(spoken))
        said = [turn.strip() for turn in spoken]
        return "".join(chain.from_iterable(zip(around[:-1], said, strict=True))) + around[-1]

    def chat_format(self, number: int) -> list[str]:
        """The texts that the chat template writes before, between and after the turns of a conversation.

        The template is rendered once for each number of turns, with limits on time and memory, and with placeholders
        for the turns. It never sees a request, so no request can slow it down.

        Args:
            number: of turns, odd; the user has the first and the last.

        Returns:
            `number` + 1 texts.

        Raises:
            UserError: as `chat_format` of this module.
        """
        if number not in self._chat_formats:
            self._chat_formats[number] = chat_format(self.tokenizer, number)
        return self._chat_formats[number]

    def check_chat_format(self, subject: str) -> None:
        """Render the chat template for each number of turns that the prompts have.

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
        """Token ids of prompts; without a chat template they start with the BOS token if the tokenizer adds it."""
        # Not verbose: the callers check that a prompt fits, and raise their own error.
        encoded = self.tokenizer(list(prompts), add_special_tokens=False, verbose=False)["input_ids"]
        return [self._start + ids for ids in encoded]

    def encode_answers(self, examples: Sequence[Example]) -> list[list[int]]:
        """Token ids of the answers, with the end-of-sequence token after those with `ends`."""
        encoded = self.tokenizer([example.answer for example in examples], add_special_tokens=False)["input_ids"]
        eos = self.tokenizer.eos_token_id
        return [
            [*ids, eos] if example.ends and eos is not None else ids
            for ids, example in zip(encoded, examples, strict=True)
        ]


class Task(Protocol):
    """The rows of one task. `example` draws the phrasing, and all other random choices, from `rng`."""

    def __len__(self) -> int: ...

    def length(self, row: int) -> int:
        """The approximate number of tokens of the example; examples of similar length share a batch."""
        ...

    def example(self, row: int, rng: np.random.Generator) -> Example: ...


class Prompted:
    """What all tasks share: a name, a renderer, a random phrasing."""

    name: TaskName

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.levels = len(renderer.vocabulary.ids)
        self.per_item = self.levels + renderer.most_of_title  # approximate tokens of an item of a history
        self.overhead = 12  # approximate tokens of a phrasing, used only for batching

    def prompt(self, rng: np.random.Generator, **values: str) -> str:
        """The prompt with the values, in a phrasing drawn from `rng`."""
        phrasing = int(rng.integers(len(self.renderer.templates[self.name].templates)))
        return self.renderer.prompt(self.name, phrasing, **values)

    def asking_for(self, prompt: str, item: int) -> Example:
        """The example whose answer is the semantic ID of `item`, a row of the catalogue."""
        return Example(prompt, self.renderer.item_text[item], ends=False, items=(item,))
