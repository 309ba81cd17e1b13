"""The run directory holds the stages of a run. An unchanged stage is skipped, and no stage is ever incomplete.

A stage is made in a hidden folder beside its own, `.NAME.partial`. Its `manifest.json` is written last, and then the
hidden folder is renamed to NAME. So a folder with a manifest is complete, even if the process was killed.

The file `.llmrec-run.json` marks a run directory. The folder may hold files of the user too: llmrec never replaces or
removes what it did not make, and raises an error if such a file has the name of a stage.
"""

import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from llmrec import atomic, manifest
from llmrec.atomic import KEY, MANIFEST
from llmrec.console import get_logger
from llmrec.errors import UserError, refused_by_the_disk, system_words
from llmrec.lock import Lock, lock_of
from llmrec.stage import Stage, digest, package_version

log = get_logger(__name__)
RUN = ".llmrec-run.json"
LOCK = ".llmrec.lock"
CONFIG = "config.yaml"
OLD_LOCK = ".lock"  # earlier versions left this empty file in every run directory
OLD_CONFIG = b"data:\n  format: "  # the first bytes of a config.yaml of llmrec
WORK = (KEY, MANIFEST)  # marks of `.NAME.partial` and `.NAME.old`


class RunDirectory:
    """A folder with one subfolder per stage. It is locked until it is closed: at the end of a `with`, or when it goes.

    Args:
        folder: created if it does not exist.
        main: whether this process writes; the other processes of a distributed launch only read and train.
        wait: barrier over the processes of a distributed launch.
        verify: whether to compare the content of a finished stage's files with its manifest, not only their sizes.

    Raises:
        UserError: the folder can't be created or written, or another process works in it.
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.main:
            self._closing()

    def _open(self) -> None:
        """Create the folder if it does not exist, and lock it."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--run {self.folder}: a file is there, expected a folder; name another one.")
        made = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        busy = f"--run {self.folder}: another llmrec is at work there; wait or stop it."
        lock = Lock(self.folder / LOCK, busy)
        self._closing = weakref.finalize(self, _close, lock, self.folder.absolute() if made else None)
        if self._older():
            with Lock(self.folder / OLD_LOCK, busy):
                self._mark()

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn an OSError within the context into an error of one line that names the run directory.

        Raises:
            UserError: the context raised an OSError.
        """
        try:
            yield
        except OSError as error:
            raise UserError(
                f"--run {self.folder}: can't be written ({system_words(error)}); name another folder, or mend this one."
            ) from error

    def path(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.folder / stage

    def manifest(self, stage: str) -> dict[str, Any]:
        """The manifest of a finished stage.

        Raises:
            UserError: the stage is missing.
        """
        found = atomic.read_manifest(self.path(stage))
        if found is None:
            raise UserError(f"{self.folder}: stage {stage!r} is missing; run `llmrec run` on this folder first.")
        return found

    def claim(self, names: Sequence[str]) -> None:
        """Mark the folder as a run directory, unless it is marked already.

        Args:
            names: names of all folders and files that llmrec may write there.

        Raises:
            UserError: the folder is not marked, and something that llmrec did not make has one of these names. Nothing
                has changed then.
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
        """The folders and files of these `names`, and their hidden folders `.NAME.partial` and `.NAME.old`."""
        for name in names:
            yield from (self.path(name), self._partial(name), self._old(name))

    def _mark(self) -> None:
        atomic.write_text(self.folder / RUN, json.dumps({"schema": 1, "llmrec": package_version("llmrec")}) + "\n")

    def _older(self) -> bool:
        """Whether an earlier version of llmrec, which wrote no mark, made this run directory."""
        if (self.folder / RUN).exists():
            return False
        lock = self.folder / OLD_LOCK
        begun = [*self.folder.glob(f"*/{MANIFEST}"), *self.folder.glob(f".*.partial/{KEY}")]
        signs = (
            lock.is_file() and not lock.stat().st_size,
            (_content(self.folder / CONFIG) or b"").startswith(OLD_CONFIG),
            any(atomic.is_ours(path.parent, WORK) for path in begun),
        )
        return sum(signs) > 1  # a copy of a run directory may lack one of the signs

    def write(self, name: str, text: str) -> None:
        """Write a file directly inside the run directory, atomically."""
        with self.reporting():
            atomic.write_text(self.folder / name, text)

    def build(self, stage: Stage) -> bool:
        """Make a stage, unless it is finished with the same configuration and inputs and has all of its files.

        Returns:
            True if the stage was made, False if it was finished already.

        Raises:
            UserError: a stage that it reads is missing; something would be lost that llmrec did not make or that the
                user put into the stage; or the disk is full or can't be written. Nothing has changed then.
        """
        inputs = {name: self.manifest(name)["key"] for name in stage.reads} if self.main else {}
        inputs |= stage.files
        partial, due = self._partial(stage.name), False
        if self.main:
            self.claim([stage.name])
            with self.reporting():
                due = self._prepare(stage, stage.key(inputs))
        self.wait()
        # After the barrier, every process sees the partial folder of a stage that must be made.
        if (stage.together or self.main) and partial.is_dir():
            with self._explaining(partial, stage.reads):
                seconds = stage.run(partial)
            if stage.together:
                self.wait()
            if self.main:
                self._finish(stage, inputs, seconds)
        self.wait()
        return due

    def _finish(self, stage: Stage, inputs: Mapping[str, str], seconds: float) -> None:
        """Write the manifest of a stage whose files are made, and rename the partial folder to the stage's name."""
        partial = self._partial(stage.name)
        with self._explaining(partial, stage.reads):
            atomic.usual_modes(partial)
            manifest.write_manifest(partial, stage.manifest(partial, inputs, seconds))
            with self._guarding(stage.name):
                self._put_in_place(stage.name, stage.precious)
        log.info("%s: done in %.1f s", stage.name, seconds)

    def amend(self, stage: str, texts: Mapping[str, str]) -> None:
        """Change files of a finished stage atomically; write nothing if they have this content already.

        Args:
            stage: name of the stage.
            texts: name of a file of the stage -> its new content.

        Raises:
            UserError: the stage is missing, or the disk is full or can't be written.
        """
        final, partial = self.path(stage), self._partial(stage)
        with self.reporting(), self._guarding(stage):
            if all(_content(final / name) == text.encode() for name, text in texts.items()):
                return
            content = self.manifest(stage)
            self._start(stage, digest({"amend": content["key"], "texts": dict(texts)}))
            # Hard links, so that the weights are not copied. Without the manifest, which marks a complete folder.
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
        """A run directory whose `build` makes nothing, but raises the errors that come before a stage is made."""
        return _Rehearsal(self)

    def _partial(self, stage: str) -> Path:
        return self.folder / f".{stage}.partial"

    def _old(self, stage: str) -> Path:
        return self.folder / f".{stage}.old"

    @contextmanager
    def _guarding(self, stage: str) -> Iterator[None]:
        """Lock a stage, so that commands such as `add-items` can't change it within the context."""
        with Lock(lock_of(self.path(stage)), wait=True):
            yield

    @contextmanager
    def _explaining(self, partial: Path, reads: Sequence[str]) -> Iterator[None]:
        """Turn errors of the disk, or errors after a folder was removed, into a UserError of one line.

        Other exceptions are defects of llmrec and pass through.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = self._vanished(partial, reads) or refused_by_the_disk(error, self.folder)
            if reason is None:
                raise
            fix = "the finished stages are as they were, and the same command goes on from there"
            raise UserError(f"--run {self.folder}: {reason}; {fix}.") from error

    def _vanished(self, partial: Path, reads: Sequence[str]) -> str | None:
        """Which folder or file another program removed or changed while the stage was made, in words; None if none."""
        if not partial.is_dir():
            return f"{partial} was removed while llmrec wrote into it"
        for name in reads:
            found = atomic.read_manifest(self.path(name))
            if found is None:
                return f"{self.path(name)} was removed or changed while llmrec read it"
            if wrong := manifest.fault(self.path(name), found):
                return f"{wrong}, after llmrec began to read it"
        return None

    def _prepare(self, stage: Stage, key: str) -> bool:
        """Clean up after an earlier process, and find out whether the stage must be made.

        Returns:
            True if the stage must be made; its partial folder is ready then.
        """
        name, partial = stage.name, self._partial(stage.name)
        with self._guarding(name):
            self._recover(name, stage.precious)
            found = self._standing(name)
            if found is not None and found["key"] == key:
                wrong = manifest.fault(self.path(name), found, self.verify)
                if wrong is None:
                    atomic.discard_folder(partial, self._old(name), WORK)
                    log.info("%s: unchanged", name)
                    return False
                log.warning("%s: %s; the stage is made again", name, wrong)
            self._require_replaceable(name, stage.precious)
            if not (stage.resumable and _content(partial / KEY) == key.encode()):
                if stage.resumable and partial.exists():
                    log.warning("%s: interrupted before with other settings or inputs; what it left is removed", name)
                self._start(name, key)
        why = " again, for changed inputs" if found is not None and found["key"] != key else ""
        log.info("%s: started%s", name, stage.again(found) or why)
        return True

    def _recover(self, stage: str, precious: Sequence[str]) -> None:
        """Complete the renaming or the removal that a killed process began."""
        final, partial, old = self.path(stage), self._partial(stage), self._old(stage)
        if self._standing(stage) is not None and not final.is_symlink():
            (final / KEY).unlink(missing_ok=True)  # killed after the new stage was renamed
        if atomic.read_manifest(partial) is not None:
            if (partial / KEY).exists():  # complete, but killed before it was renamed
                self._put_in_place(stage, precious)
            else:  # the old stage, after the exchange with the new one
                atomic.discard_folder(partial, old, WORK)
        atomic.remove_folder(old, WORK)

    def _start(self, stage: str, key: str) -> None:
        """Create an empty partial folder with a key file."""
        partial = self._partial(stage)
        atomic.discard_folder(partial, self._old(stage), WORK)
        partial.mkdir()
        (partial / KEY).write_text(key)

    def _put_in_place(self, stage: str, precious: Sequence[str]) -> None:
        """Replace the stage with the partial folder, which has a manifest already."""
        self._require_replaceable(stage, precious)
        self._exchange(stage)

    def _exchange(self, stage: str) -> None:
        atomic.replace_folder(self._partial(stage), self.path(stage), self._old(stage), WORK)
        (self.path(stage) / KEY).unlink()

    def _standing(self, stage: str) -> dict[str, Any] | None:
        """The manifest of a finished stage of this name; None if the folder is missing or is something else."""
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
    """Finds out, before the first stage, which stages a run would make; makes nothing."""

    def __init__(self, run: RunDirectory) -> None:
        self.folder, self.main, self.wait, self.verify = run.folder, run.main, lambda: None, run.verify
        self._keys: dict[str, str] = {}

    def build(self, stage: Stage) -> bool:
        """Whether the stage would be made.

        Raises:
            UserError: making it would replace something that llmrec did not make or that the user put into the stage.
        """
        if not self.main:
            return False
        inputs = {name: self._keys[name] if name in self._keys else self.manifest(name)["key"] for name in stage.reads}
        key = self._keys[stage.name] = stage.key(inputs | dict(stage.files))
        final, partial = self.path(stage.name), self._partial(stage.name)
        with self.reporting():
            atomic.require_ours(self._old(stage.name), WORK)
            atomic.require_ours(partial, WORK)
            whole = atomic.read_manifest(partial) if (partial / KEY).exists() else None
            found = whole or self._standing(stage.name)
            stands = found is not None and found["key"] == key
            if found is not None and stands and whole is None:
                stands = manifest.fault(final, found, self.verify) is None
            if whole is not None or not stands:
                self._require_replaceable(stage.name, stage.precious)
        return not stands


def _link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _close(lock: Lock, made: Path | None) -> None:
    """Unlock a run directory; remove the folder `made` if it is still empty."""
    lock.release()
    if made is not None:
        with suppress(OSError):  # the folder is not empty
            made.rmdir()
