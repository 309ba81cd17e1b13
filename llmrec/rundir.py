"""The run directory: stages that are skipped when nothing changed and are never seen half-written.

A stage is made in a hidden sibling, `.NAME.partial`; its `manifest.json` is written last, and then the sibling is
renamed into place. So a folder with a manifest is whole, whatever was killed when.
"""

import fcntl
import hashlib
import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmrec.console import get_logger
from llmrec.errors import UserError

log = get_logger(__name__)
SCHEMA = 1
MANIFEST = "manifest.json"
KEY = ".key"  # of the call whose work a partial folder holds
PACKAGES = (
    "llmrec",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "faiss-cpu",
    "polars",
    "numpy",
    "tokenizers",
)


class RunDirectory:
    """Stages below one folder.

    Args:
        folder: made if it is not there.
        main: whether this process writes; the others of a distributed launch only read and train.
        wait: barrier over the processes of a distributed launch.

    Raises:
        UserError: another process works in the folder.
    """

    def __init__(self, folder: str | Path, main: bool = True, wait: Callable[[], None] = lambda: None) -> None:
        self.folder = Path(folder)
        self.main = main
        self.wait = wait
        if main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / ".lock").open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"--run {self.folder}: another llmrec is at work there; wait or stop it.") from None

    def path(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.folder / stage

    def manifest(self, stage: str) -> dict[str, Any]:
        """The manifest of a finished stage.

        Raises:
            UserError: the stage is not there.
        """
        path = self.path(stage) / MANIFEST
        if not path.exists():
            raise UserError(f"{self.folder}: stage {stage!r} is missing; run `llmrec run` on this folder first.")
        return dict(json.loads(path.read_text()))

    def build(
        self,
        stage: str,
        config: Mapping[str, Any],
        make: Callable[[Path], None],
        reads: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
        resumable: bool = False,
        together: bool = False,
    ) -> bool:
        """Make a stage unless it stands with the same configuration and inputs.

        Args:
            stage: name of the folder.
            config: everything that steers the stage, JSON-able; `seed` in it goes to the manifest.
            make: writes the stage's files into the folder it is given.
            reads: stages this one reads.
            files: hashes of what else it reads, by name.
            resumable: `make` can go on with what an interrupted call left in the folder.
            together: all processes of a distributed launch call `make`, not just the main one.

        Returns:
            True if it was made, False if it stood.
        """
        inputs = {name: self.manifest(name)["key"] for name in reads} if self.main else {}
        inputs |= files or {}
        key = _digest({"schema": SCHEMA, "stage": stage, "config": config, "inputs": inputs})
        final, partial = self.path(stage), self.folder / f".{stage}.partial"
        due = self.main and self._prepare(stage, key, final, partial, resumable)
        self.wait()
        if not together and not self.main:
            self.wait()
            return False
        # After the barrier a stage that is due has a partial folder, for every process to see.
        if not partial.is_dir():
            self.wait()
            return False
        started = time.perf_counter()
        make(partial)
        if together:
            self.wait()
        if self.main:
            manifest = {
                "schema": SCHEMA,
                "stage": stage,
                "key": key,
                "config": config,
                "inputs": inputs,
                "packages": {name: _version(name) for name in PACKAGES},
                "seed": config.get("seed"),
                "seconds": round(time.perf_counter() - started, 3),
                "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
            }
            write_text(partial / MANIFEST, json.dumps(manifest, indent=1))
            _replace(final, partial)
            (final / KEY).unlink()
            log.info("%s: done in %.1f s", stage, manifest["seconds"])
        self.wait()
        return due

    def _prepare(self, stage: str, key: str, final: Path, partial: Path, resumable: bool) -> bool:
        """Settle what an earlier process left; True if the stage is due, its partial folder then ready."""
        if (partial / MANIFEST).exists():  # whole, but killed before the rename
            _replace(final, partial)
        shutil.rmtree(_old(final), ignore_errors=True)  # killed after it
        if (final / MANIFEST).exists() and self.manifest(stage)["key"] == key:
            shutil.rmtree(partial, ignore_errors=True)
            log.info("%s: unchanged", stage)
            return False
        mark = partial / KEY
        if not (resumable and mark.exists() and mark.read_text() == key):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            write_text(mark, key)
        log.info("%s: started", stage)
        return True


def _replace(final: Path, partial: Path) -> None:
    """Put `partial`, which holds its manifest, in the place of `final`."""
    old = _old(final)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _old(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def file_hashes(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file's content, by its path."""
    hashes = {}
    for path in paths:
        with path.open("rb") as file:
            hashes[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def folder_state(folder: Path) -> dict[str, str]:
    """Size and modification time of each file of a folder too large to hash, such as a base model."""
    return {
        str(path): f"{path.stat().st_size} bytes, {path.stat().st_mtime_ns}"
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
