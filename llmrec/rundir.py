"""The run directory: stages that are skipped when nothing changed and are never seen half-written.

A stage is made in a hidden sibling, `.NAME.partial`; its `manifest.json` is written last, and then the sibling takes
the stage's place. So a folder with a manifest is whole, whatever was killed when.

A run directory holds `.llmrec-run.json`. In a folder with files of the user, stages are made only where nothing of the
user's is in the way: what llmrec did not make is never replaced and never removed.
"""

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmrec import atomic, manifest
from llmrec.atomic import KEY, MANIFEST, Lock
from llmrec.config import with_old_names
from llmrec.console import get_logger
from llmrec.errors import UserError

log = get_logger(__name__)
KEY_SCHEMA = 1
"""Of what a stage's key is the digest of; a new one would make every stage of every run directory anew."""
RUN = ".llmrec-run.json"
LOCK = ".llmrec.lock"
CONFIG = "config.yaml"
OLD_LOCK = ".lock"  # earlier versions left it, empty, in every run directory
OLD_CONFIG = b"data:\n  format: "  # how a config.yaml of llmrec begins
WORK = (KEY, MANIFEST)  # marks of `.NAME.partial` and `.NAME.old`
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
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
"""Errors that have their reason in the machine, whatever was written."""
RIGHTS = {errno.EACCES, errno.EPERM}


class RunDirectory:
    """Stages below one folder.

    Args:
        folder: made if it is not there.
        main: whether this process writes; the others of a distributed launch only read and train.
        wait: barrier over the processes of a distributed launch.
        verify: compare the content of a finished stage's files with its manifest, not only their sizes.

    Raises:
        UserError: no folder can be made or written there, or another process works in it.
    """

    def __init__(
        self,
        folder: str | Path,
        main: bool = True,
        wait: Callable[[], None] = lambda: None,
        verify: bool = False,
    ) -> None:
        if not str(folder).strip() or "\0" in str(folder):
            raise UserError(f"--run {str(folder)!r}: no name of a folder; name one, such as --run runs/mine.")
        self.folder = Path(folder)
        self.main = main
        self.wait = wait
        self.verify = verify
        if main:
            with self.reporting():
                self._open()

    def _open(self) -> None:
        """Make the folder if need be, and lock it."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--run {self.folder}: a file is there, expected a folder; name another one.")
        made = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        busy = f"--run {self.folder}: another llmrec is at work there; wait or stop it."
        lock = Lock(self.folder / LOCK, busy)
        weakref.finalize(self, _close, lock, self.folder.absolute() if made else None)
        if self._older():
            with Lock(self.folder / OLD_LOCK, busy):
                self._mark()

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn what the disk refuses into one line that names the run directory.

        Raises:
            UserError: in place of an OSError within.
        """
        try:
            yield
        except OSError as error:
            raise UserError(
                f"--run {self.folder}: can't be written ({_told(error)}); name another folder, or mend this one."
            ) from error

    def path(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.folder / stage

    def manifest(self, stage: str) -> dict[str, Any]:
        """The manifest of a finished stage.

        Raises:
            UserError: the stage is not there.
        """
        found = atomic.read_manifest(self.path(stage))
        if found is None:
            raise UserError(f"{self.folder}: stage {stage!r} is missing; run `llmrec run` on this folder first.")
        return found

    def claim(self, names: Sequence[str]) -> None:
        """Mark the folder as a run directory, unless it is one.

        Args:
            names: of all folders and files that llmrec may ever write there.

        Raises:
            UserError: the folder is none of ours, and one of these names is taken in it; nothing was changed.
        """
        if not self.main:
            return
        with self.reporting():
            if (self.folder / RUN).is_file():
                return
            for path in self.places(names):
                if os.path.lexists(path) and not atomic.is_ours(path, ()):
                    raise UserError(
                        f"--run {self.folder}: {path} is there already, and llmrec did not make it; name another "
                        "folder for the run, or move or rename what is there."
                    )
            self._mark()

    def places(self, names: Sequence[str]) -> Iterator[Path]:
        """The folders and files of these `names`, and the hidden ones that stand for them while they change."""
        for name in names:
            yield from (self.path(name), self._partial(name), self._old(name))

    def _mark(self) -> None:
        atomic.write_text(self.folder / RUN, json.dumps({"schema": 1, "llmrec": _version("llmrec")}) + "\n")

    def _older(self) -> bool:
        """Whether a version of llmrec that left no mark made this run directory."""
        if (self.folder / RUN).exists():
            return False
        lock = self.folder / OLD_LOCK
        begun = [*self.folder.glob(f"*/{MANIFEST}"), *self.folder.glob(f".*.partial/{KEY}")]
        signs = (
            lock.is_file() and not lock.stat().st_size,
            (_content(self.folder / CONFIG) or b"").startswith(OLD_CONFIG),
            any(atomic.is_ours(path.parent, WORK) for path in begun),
        )
        return sum(signs) > 1  # a copy may lack one of them

    def write(self, name: str, text: str) -> None:
        """Write a file of the run directory itself, whole or not at all."""
        with self.reporting():
            atomic.write_text(self.folder / name, text)

    def build(
        self,
        stage: str,
        config: Mapping[str, Any],
        make: Callable[[Path], None],
        reads: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
        resumable: bool = False,
        together: bool = False,
        spare: Sequence[str] = (),
        precious: Sequence[str] = (),
        finish: Callable[[], None] = lambda: None,
    ) -> bool:
        """Make a stage unless it stands with the same configuration and inputs, and all of its files.

        Args:
            stage: name of the folder.
            config: everything that steers the stage, JSON-able; `seed` in it goes to the manifest.
            make: writes the stage's files into the folder it is given.
            reads: stages this one reads.
            files: hashes of what else it reads, by name.
            resumable: `make` can go on with what an interrupted call left in the folder.
            together: all processes of a distributed launch call `make`, not just the main one.
            spare: patterns of files that nobody reads once the stage is made; they may be deleted.
            precious: names of files that are the user's once they differ from what the stage wrote.
            finish: called by the main process when the stage stands, whether it was made now or before.

        Returns:
            True if it was made, False if it stood.

        Raises:
            UserError: a stage that it reads is missing; something that is not ours, or that the user put into the
                stage, would be lost; or the disk is full or can't be written. Nothing has changed.
        """
        inputs = {name: self.manifest(name)["key"] for name in reads} if self.main else {}
        inputs |= files or {}
        key = _stage_key(stage, config, inputs)
        partial = self._partial(stage)
        due = False
        if self.main:
            self.claim([stage])
            with self.reporting():
                due = self._prepare(stage, key, resumable, precious)
        self.wait()
        if not together and not self.main:
            self.wait()
            return False
        # After the barrier a stage that is due has a partial folder, for every process to see.
        if not partial.is_dir():
            self.wait()
            if self.main:
                finish()
            return False
        started = time.perf_counter()
        with self._explaining(partial, reads):
            make(partial)
        if together:
            self.wait()
        if self.main:
            with self._explaining(partial, reads):
                atomic.usual_modes(partial)
                content = {
                    "schema": manifest.SCHEMA,
                    "stage": stage,
                    "key": key,
                    "config": config,
                    "inputs": inputs,
                    "packages": {name: _version(name) for name in PACKAGES},
                    "seed": config.get("seed"),
                    "seconds": round(time.perf_counter() - started, 3),
                    "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
                    "files": manifest.record(partial),
                    "spare": list(spare),
                }
                manifest.write_manifest(partial, content)
                with self._guarding(stage):
                    self._put_in_place(stage, precious)
            log.info("%s: done in %.1f s", stage, content["seconds"])
        self.wait()
        if self.main:
            finish()
        return due

    def amend(self, stage: str, texts: Mapping[str, str]) -> None:
        """Change files of a finished stage, all or none; nothing is written if they have this content already.

        Args:
            stage: name of the folder.
            texts: name of a file in it -> its new content.

        Raises:
            UserError: the stage is missing, or the disk is full or can't be written.
        """
        final, partial = self.path(stage), self._partial(stage)
        with self.reporting(), self._guarding(stage):
            if all(_content(final / name) == text.encode() for name, text in texts.items()):
                return
            content = self.manifest(stage)
            self._start(stage, _digest({"amend": content["key"], "texts": dict(texts)}))
            # Hard links: the weights stand on the disk once. Not of the manifest, which says that all is there.
            shutil.copytree(
                final,
                partial,
                symlinks=True,
                ignore=lambda folder, names: [MANIFEST] if Path(folder) == final else [],
                copy_function=_link,
                dirs_exist_ok=True,
            )
            for name, text in texts.items():
                atomic.write_text(partial / name, text)
            if "files" in content:
                content["files"] |= manifest.record(partial, texts)
            manifest.write_manifest(partial, content)
            self._exchange(stage)

    def rehearsal(self) -> "RunDirectory":
        """A stand-in whose `build` makes nothing, but raises what this one's would raise before it makes a stage."""
        return _Rehearsal(self)

    def _partial(self, stage: str) -> Path:
        return self.folder / f".{stage}.partial"

    def _old(self, stage: str) -> Path:
        return self.folder / f".{stage}.old"

    @contextmanager
    def _guarding(self, stage: str) -> Iterator[None]:
        """Keep `add-items` and its like away from a stage while it changes."""
        with Lock(atomic.lock_of(self.path(stage)), wait=True):
            yield

    @contextmanager
    def _explaining(self, partial: Path, reads: Sequence[str]) -> Iterator[None]:
        """Turn errors of the disk, and what comes of folders that vanish, into one line; our defects pass through."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = self._vanished(partial, reads) or _refused_by_the_disk(error, self.folder)
            if reason is None:
                raise
            fix = "the finished stages are as they were, and the same command goes on from there"
            raise UserError(f"--run {self.folder}: {reason}; {fix}.") from error

    def _vanished(self, partial: Path, reads: Sequence[str]) -> str | None:
        """What somebody took away while a stage was made."""
        if not partial.is_dir():
            return f"{partial} was removed while llmrec wrote into it"
        for name in reads:
            found = atomic.read_manifest(self.path(name))
            if found is None:
                return f"{self.path(name)} was removed or changed while llmrec read it"
            if wrong := manifest.fault(self.path(name), found):
                return f"{wrong}, after llmrec began to read it"
        return None

    def _prepare(self, stage: str, key: str, resumable: bool, precious: Sequence[str]) -> bool:
        """Settle what an earlier process left; True if the stage is due, its partial folder then ready."""
        partial = self._partial(stage)
        with self._guarding(stage):
            self._settle(stage, precious)
            found = self._standing(stage)
            if found is not None and found["key"] == key:
                wrong = manifest.fault(self.path(stage), found, self.verify)
                if wrong is None:
                    atomic.discard_folder(partial, self._old(stage), WORK)
                    log.info("%s: unchanged", stage)
                    return False
                log.warning("%s: %s; the stage is made again", stage, wrong)
            self._require_replaceable(stage, precious)
            if not (resumable and _content(partial / KEY) == key.encode()):
                self._start(stage, key)
        log.info("%s: started", stage)
        return True

    def _settle(self, stage: str, precious: Sequence[str]) -> None:
        """End what a killed process began to put in place or to remove."""
        final, partial, old = self.path(stage), self._partial(stage), self._old(stage)
        if self._standing(stage) is not None and not final.is_symlink():
            (final / KEY).unlink(missing_ok=True)  # killed after the new stage was in its place
        if atomic.read_manifest(partial) is not None:
            if (partial / KEY).exists():  # whole, but killed before it was in its place
                self._put_in_place(stage, precious)
            else:  # the stage that was replaced
                atomic.discard_folder(partial, old, WORK)
        atomic.remove_folder(old, WORK)

    def _start(self, stage: str, key: str) -> None:
        """An empty partial folder, marked with the key."""
        partial = self._partial(stage)
        atomic.discard_folder(partial, self._old(stage), WORK)
        partial.mkdir()
        (partial / KEY).write_text(key)

    def _put_in_place(self, stage: str, precious: Sequence[str]) -> None:
        """Put the partial folder, which holds its manifest, in the place of the stage."""
        self._require_replaceable(stage, precious)
        self._exchange(stage)

    def _exchange(self, stage: str) -> None:
        atomic.replace_folder(self._partial(stage), self.path(stage), self._old(stage), WORK)
        (self.path(stage) / KEY).unlink()

    def _standing(self, stage: str) -> dict[str, Any] | None:
        """The manifest of a stage of ours that stands; None if there is none, or something else."""
        found = atomic.read_manifest(self.path(stage))
        return found if found is not None and found["stage"] == stage else None

    def _require_replaceable(self, stage: str, precious: Sequence[str]) -> None:
        """Raise UserError if a new stage would replace what llmrec did not make."""
        final = self.path(stage)
        if final.is_symlink():
            raise UserError(
                f"--run {self.folder}: {final} is a link to {os.path.realpath(final)}, and the stage is to be made "
                "again; do it in the run directory that the link leads to, or remove the link."
            )
        if not os.path.lexists(final) or atomic.is_ours(final, ()):
            return
        found = self._standing(stage)
        if found is None:
            raise UserError(
                f"--run {self.folder}: {final} holds no {MANIFEST} of this stage, so llmrec does not replace it; "
                "move it, or name another folder for the run."
            )
        if lost := manifest.belongings(final, found, precious):
            raise UserError(
                f"--run {self.folder}: {lost}; move {final} elsewhere to keep all of it, or delete it, and start the "
                "same command again."
            )


class _Rehearsal(RunDirectory):
    """What a run would do, found out before the first stage: nothing is made."""

    def __init__(self, run: RunDirectory) -> None:
        self.folder, self.main, self.wait, self.verify = run.folder, run.main, lambda: None, run.verify
        self._keys: dict[str, str] = {}

    def build(
        self,
        stage: str,
        config: Mapping[str, Any],
        make: Callable[[Path], None],
        reads: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
        resumable: bool = False,
        together: bool = False,
        spare: Sequence[str] = (),
        precious: Sequence[str] = (),
        finish: Callable[[], None] = lambda: None,
    ) -> bool:
        """Whether the stage would be made.

        Raises:
            UserError: it would be, and something that is not ours, or that the user put into it, is in the way.
        """
        if not self.main:
            return False
        inputs = {name: self._keys[name] if name in self._keys else self.manifest(name)["key"] for name in reads}
        key = self._keys[stage] = _stage_key(stage, config, inputs | dict(files or {}))
        final, partial = self.path(stage), self._partial(stage)
        with self.reporting():
            atomic.require_ours(self._old(stage), WORK)
            atomic.require_ours(partial, WORK)
            whole = atomic.read_manifest(partial) if (partial / KEY).exists() else None
            found = whole or self._standing(stage)
            stands = found is not None and found["key"] == key
            if found is not None and stands and whole is None:
                stands = manifest.fault(final, found, self.verify) is None
            if whole is not None or not stands:
                self._require_replaceable(stage, precious)
        return not stands


def _stage_key(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """What a stage is made from, as one digest; fields count under the names that they had first."""
    sections = {name: with_old_names(name, fields) for name, fields in config.items() if isinstance(fields, dict)}
    spelt = with_old_names(stage, {**config, **sections})
    return _digest({"schema": KEY_SCHEMA, "stage": stage, "config": spelt, "inputs": inputs})


def _link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _close(lock: Lock, made: Path | None) -> None:
    """Let go of a run directory; one that was made for nothing goes."""
    lock.release()
    if made is not None:
        with suppress(OSError):  # there is something in it
            made.rmdir()


def _told(error: OSError) -> str:
    """An error of the system in words: the file, and what is wrong with it."""
    what = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {what}" if isinstance(error.filename, str | bytes) else what


def _refused_by_the_disk(error: BaseException, folder: Path) -> str | None:
    """What the disk said, if that made an error; libraries that write in C++ or Rust tell it in words only."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            name = os.fsdecode(seen.filename) if isinstance(seen.filename, str | bytes) else ""
            inside = os.path.realpath(name).startswith(os.path.realpath(folder) + os.sep)
            if seen.errno in DISK or (seen.errno in RIGHTS and inside):
                return _told(seen)
        number = re.search(r"\(os error (\d+)\)", str(seen))
        if number and int(number[1]) in DISK:
            return os.strerror(int(number[1]))
        if "PytorchStreamWriter failed writing" in str(seen):
            return "a checkpoint can't be written (is the disk full?)"
        seen = seen.__cause__ or seen.__context__
    return None


def file_hashes(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file's content, by its path."""
    return {str(path): manifest.sha256(path) for path in paths}


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
