"""Lock files, so that only one process at a time changes a run directory or a bundle."""

import fcntl
import os
import stat
import weakref
from contextlib import suppress
from pathlib import Path

from llmrec.errors import UserError


def lock_of(folder: Path) -> Path:
    """The lock file of a folder that several commands change, such as a bundle (`run` and `add-items`)."""
    return folder.with_name(f".{folder.name}.lock")


class Lock:
    """A lock file. The lock is held until `release` is called or the object or the process ends.

    `release` removes the file.

    Args:
        path: path of the lock file; its folder exists.
        busy: message of the UserError if another process holds the lock.
        wait: wait for the other process instead of raising.

    Raises:
        UserError: another process holds the lock, or something that is not a lock file of llmrec has this name.
        OSError: the file can't be created or locked.
    """

    def __init__(self, path: Path, busy: str = "", wait: bool = False) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        while True:
            if os.path.lexists(path) and not _is_file(path):
                raise UserError(f"{path}: llmrec needs this name for its lock file; move what is there.")
            descriptor = os.open(path, flags, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                if os.fstat(descriptor).st_size:
                    raise UserError(f"{path}: not a lock file of llmrec, which would be empty; move it.")
                if is_at(descriptor, path):
                    break
            except BlockingIOError:
                os.close(descriptor)
                raise UserError(busy) from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # the holder removed the file before we locked it: try again with a new file
        self.release = weakref.finalize(self, _unlock, descriptor, path.absolute(), os.getpid())

    def __enter__(self) -> None: ...

    def __exit__(self, *reason: object) -> None:
        self.release()


def _unlock(descriptor: int, path: Path, owner: int) -> None:
    """Remove the lock file while it is still locked, then unlock it. A forked child keeps its parent's lock file."""
    try:
        if os.getpid() == owner and is_at(descriptor, path):
            with suppress(OSError):
                path.unlink()
    finally:
        os.close(descriptor)


def _is_file(path: Path) -> bool:
    """Whether a path is a plain file; also True if another process has just removed it."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` still names the open file `descriptor`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False
