"""What a tokenizer's chat template writes around the turns of a conversation, found out under limits.

A chat template is a program (Jinja) that comes with the tokenizer, perhaps a stranger's. It is rendered in a process of
its own, with limits of processor time, memory and output, and never again for a request.
"""

import json
import os
import resource
import select
import signal
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llmrec.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 10
"""Time that a template may take."""
MEMORY = 2**29
"""Bytes that a template may take."""
OUTPUT = 2**20
"""Characters that a template may write."""
MARK = "llmrec turn {} 7f3a"
"""In place of a turn."""


def chat_format(tokenizer: "PreTrainedTokenizerBase", turns: int) -> list[str]:
    """The `turns` + 1 texts that the chat template writes before, between and behind the turns.

    Args:
        tokenizer: with a chat template.
        turns: odd; the user has the first and the last, the assistant every second.

    Raises:
        UserError: the template fails, takes too long, writes too much, or does not write each turn once, in order.
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
    """The rendered conversation, from a child process."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child uses no lock of another thread
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
    """Render, write the answer as JSON, and end the process."""
    try:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        with suppress(OSError):  # only Linux tells so
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
    """What the child has written; None if it ended without an answer, or too late."""
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
