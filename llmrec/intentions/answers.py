"""Language models that answer prompts (OpenAI-compatible endpoint, local model), and the file of their answers."""

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from llmrec.console import track
from llmrec.errors import UserError
from llmrec.intentions.intentions import IntentionsConfig
from llmrec.resources import hub_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE = "answers.jsonl"


class Answers:
    """The answers of one model, prompt -> answer, kept in a file.

    Args:
        path: the file (JSONL); created if it does not exist. An incomplete last line, left by a killed run, is removed.
        model: name of the model. Answers of other models stay in the file but are ignored.
    """

    def __init__(self, path: Path, model: str) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._file = path.open("a+b")
        self._file.seek(0)
        whole = self._file.read().rpartition(b"\n")[0]
        self._file.truncate(len(whole) + 1 if whole else 0)
        self._found: dict[str, str] = {}
        for line in whole.splitlines():
            record = json.loads(line)
            self._found[record["key"]] = record["answer"]

    def __contains__(self, prompt: str) -> bool:
        return self._key(prompt) in self._found

    def __getitem__(self, prompt: str) -> str:
        return self._found[self._key(prompt)]

    def keep(self, prompt: str, answer: str) -> None:
        """Add an answer and write it to the file before returning. Safe to call from several threads."""
        line = json.dumps({"key": self._key(prompt), "answer": answer}) + "\n"
        with self._lock:
            self._found[self._key(prompt)] = answer
            self._file.write(line.encode())
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _key(self, prompt: str) -> str:
        return sha256(f"{self._model}\0{prompt}".encode("utf-8", "surrogatepass")).hexdigest()


class Answerer(Protocol):
    """A language model that answers prompts."""

    @property
    def name(self) -> str:
        """The name of the model, which is part of the key of its answers."""
        ...

    def answer(self, prompts: list[str], answers: Answers) -> None:
        """Put the answer to each prompt into `answers` as soon as it arrives.

        Raises:
            UserError: the model cannot be loaded or asked; `answers` keeps the answers that arrived before.
        """
        ...


ATTEMPTS = 6
"""Maximum number of times that a request is sent; the waits between them are 1, 2, 4, ... seconds."""


LONGEST_WAIT = 120.0
"""Maximum wait in seconds when the endpoint asks for one (header Retry-After)."""


TIMEOUT = 300.0
"""Timeout of a request in seconds; a small server under load is slow."""


class Pace:
    """Rate limiter: spaces the starts of requests evenly.

    Args:
        per_minute: maximum number of starts per minute; None: no limit.
        clock: returns the current time in seconds.
    """

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._clock = clock
        self._free = clock()
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Reserve the next start time; returns the seconds until then."""
        with self._lock:
            now = self._clock()
            start = max(now, self._free)
            self._free = start + self._gap
            return start - now


class Endpoint:
    """An OpenAI-compatible HTTP endpoint; `concurrent` requests run at the same time.

    Args:
        config: url, model, key_variable, requests_per_minute and concurrent are read.
        wait: a function that sleeps for some seconds. The default also returns when another request has been refused
            or has failed in all its attempts.
        clock: the clock of the rate limiter, in seconds.
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
        """Put every answer into `answers`; raises UserError if a request is refused or fails in all its attempts."""
        key = os.environ.get(self._key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._failed.clear()
        with (
            httpx.Client(headers=headers, timeout=TIMEOUT) as client,
            ThreadPoolExecutor(self._concurrent) as pool,
        ):
            asked = [pool.submit(self._ask, client, prompt, answers) for prompt in prompts]
            try:
                for request in track(as_completed(asked), f"asking {self.name}", len(asked), "requests"):
                    request.result()
            except BaseException:
                self._failed.set()  # running requests still finish and keep their answers
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
    """The text of the answer, "" for null; raises ValueError, LookupError or TypeError for a malformed response."""
    content = response.json()["choices"][0]["message"]["content"]
    if not isinstance(content, str | None):
        raise TypeError(content)
    return content or ""


def _told_wait(response: httpx.Response) -> float:
    """Seconds to wait from the header Retry-After; 0 if it is absent or not a whole number of seconds."""
    told = response.headers.get("Retry-After", "")
    return min(float(told), LONGEST_WAIT) if told.isdecimal() else 0.0


NEW_TOKENS = 256
"""Maximum number of tokens of an answer."""


class LocalModel:
    """A local causal language model that answers by greedy decoding, in batches.

    Args:
        name: folder or Hub id.
        batch_size: prompts per batch.
    """

    def __init__(self, name: str, batch_size: int) -> None:
        self.name = name
        self._batch_size = batch_size

    def answer(self, prompts: list[str], answers: Answers) -> None:
        """Put every answer into `answers`, batch by batch; raises UserError if the model can't be loaded."""
        import torch

        model, tokenizer = self._load()
        prompts = sorted(prompts, key=len, reverse=True)  # less padding; a batch too large for memory fails at once
        batches = range(0, len(prompts), self._batch_size)
        for start in track(batches, f"asking {self.name}", unit="prompts"):
            batch = prompts[start : start + self._batch_size]
            texts = [_as_chat(tokenizer, prompt) for prompt in batch]
            inputs = tokenizer(
                texts, padding=True, return_tensors="pt", add_special_tokens=tokenizer.chat_template is None
            ).to(model.device)
            with torch.inference_mode():
                outputs = model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=NEW_TOKENS,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                )
            new = outputs[:, inputs["input_ids"].shape[1] :]
            for prompt, text in zip(batch, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                answers.keep(prompt, text)

    def _load(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from llmrec.device import resolve_device, resolve_dtype

        device = resolve_device("auto")
        try:
            hub = hub_options(self.name)
            tokenizer = AutoTokenizer.from_pretrained(self.name, padding_side="left", **hub)
            model = AutoModelForCausalLM.from_pretrained(self.name, dtype=resolve_dtype("auto", device), **hub)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"--intentions.local_model {self.name}: can't be loaded as a causal language model: {reason}"
            ) from None
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return model.to(device).eval(), tokenizer


def _as_chat(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> str:
    """The prompt in the chat template of the model, if it has one; with thinking switched off, if the template can."""
    if tokenizer.chat_template is None:
        return f"{prompt}\n\n"
    turns = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False))
