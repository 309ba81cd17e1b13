"""A language model behind an OpenAI-compatible endpoint: OpenAI, vLLM, llama.cpp, Ollama and many others."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx

from llmrec.console import track
from llmrec.errors import UserError
from llmrec.intentions.answers import Answers
from llmrec.intentions.config import IntentionsConfig

ATTEMPTS = 6
"""Times that a request is sent at most, 1, 2, 4, ... seconds apart."""
LONGEST_WAIT = 120.0
"""Seconds to wait at most when the endpoint says how long."""
TIMEOUT = 300.0
"""Seconds for an answer; a small server under load takes its time."""


class Pace:
    """Evenly spaced starts, at most so many a minute.

    Args:
        per_minute: None for no limit.
        clock: seconds.
    """

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._clock = clock
        self._free = clock()
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Take the next place; returns the seconds until it."""
        with self._lock:
            now = self._clock()
            start = max(now, self._free)
            self._free = start + self._gap
            return start - now


class Endpoint:
    """Asks over HTTP, `concurrent` requests at a time.

    Args:
        config: url, model, key_variable, requests_per_minute, concurrent.
        wait: sleeps for some seconds; default: until the time is over or another request has failed for good.
        clock: of the pace.
    """

    def __init__(
        self,
        config: IntentionsConfig,
        wait: Callable[[float], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert config.url is not None, "checked by the configuration"
        assert config.model is not None, "checked by the configuration"
        self.name = config.model
        self._address = f"{config.url.rstrip('/')}/chat/completions"
        self._key_variable = config.key_variable
        self._concurrent = config.concurrent
        self._pace = Pace(config.requests_per_minute, clock)
        self._failed = threading.Event()
        self._wait = self._failed.wait if wait is None else wait

    def answer(self, prompts: list[str], answers: Answers) -> None:
        """Put every answer into `answers`; raises UserError when the endpoint refuses or fails for good."""
        key = os.environ.get(self._key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._failed.clear()
        with (
            httpx.Client(headers=headers, timeout=TIMEOUT) as client,
            ThreadPoolExecutor(self._concurrent) as pool,
        ):
            asked = [pool.submit(self._ask, client, prompt, answers) for prompt in prompts]
            try:
                for request in track(as_completed(asked), f"asking {self.name}", len(asked)):
                    request.result()
            except BaseException:
                self._failed.set()  # what is under way still ends, and its answers are kept
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, client: httpx.Client, prompt: str, answers: Answers) -> None:
        problem, delay = "", 0.0
        for attempt in range(ATTEMPTS):
            self._wait(max(delay, self._pace.reserve()))
            if self._failed.is_set():
                return
            problem, delay = "", float(2**attempt)
            try:
                response = client.post(
                    self._address, json={"model": self.name, "messages": [{"role": "user", "content": prompt}]}
                )
            except httpx.TransportError as error:
                problem = f"{type(error).__name__} ({error})"
                continue
            if response.is_success:
                try:
                    answers.keep(prompt, _content(response))
                    return
                except (ValueError, LookupError, TypeError):
                    problem = f"status {response.status_code} without an answer ({response.text[:80]!r})"
                    continue
            problem = f"status {response.status_code} ({response.text[:120]!r})"
            if response.status_code < 500 and response.status_code not in (408, 409, 429):
                raise UserError(f"--intentions.url {self._address}: {problem}; {self._advice(response.status_code)}")
            delay = _told_wait(response) or delay
        raise UserError(
            f"--intentions.url {self._address}: {problem}, {ATTEMPTS} times; the answers so far are kept, and the same "
            "command goes on once the endpoint is well (or with fewer --intentions.requests_per_minute)"
        )

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            found = "is set" if os.environ.get(self._key_variable) else "is not set"
            return f"put a valid key into the environment variable {self._key_variable}, which {found}"
        if status == 404:
            return f"check the address and --intentions.model {self.name}"
        return f"check --intentions.model {self.name} and what the endpoint accepts"


def _content(response: httpx.Response) -> str:
    """The answer's text, "" where the model gave none; raises ValueError, LookupError or TypeError for no reply."""
    content = response.json()["choices"][0]["message"]["content"]
    if not isinstance(content, str | None):
        raise TypeError(content)
    return content or ""


def _told_wait(response: httpx.Response) -> float:
    """Seconds that the endpoint asks to wait, 0 if it does not say so in seconds."""
    told = response.headers.get("Retry-After", "")
    return min(float(told), LONGEST_WAIT) if told.isdecimal() else 0.0
