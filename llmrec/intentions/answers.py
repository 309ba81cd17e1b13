"""Answers of a language model on disk, one JSON line each as they come: a killed call loses none it was given."""

import json
import threading
from hashlib import sha256
from pathlib import Path
from typing import Protocol

FILE = "answers.jsonl"


class Answers:
    """What a model answered, by prompt.

    Args:
        path: the file; made if it is not there. A last line that a kill cut short is dropped.
        model: what was asked; answers of other models in the file stay, unseen.
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
        """Add an answer, from any thread; it is in the system's hands when this returns."""
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
    """A language model that can be asked."""

    @property
    def name(self) -> str:
        """Of the model; its answers are kept under it."""
        ...

    def answer(self, prompts: list[str], answers: Answers) -> None:
        """Put the answer to every prompt into `answers`, each as soon as it is there.

        Raises:
            UserError: the model cannot be loaded or asked; the answers so far are kept.
        """
        ...
