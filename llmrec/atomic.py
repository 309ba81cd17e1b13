"""A folder replaced by a new one: whoever looks, and whatever is killed when, finds the whole old or the whole new.

The new one is made in a hidden sibling. The kernel then exchanges the two names in one step, and what has the sibling's
name now, the old folder, goes.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llmrec.errors import UserError

AT_FDCWD = -100  # Linux: relative paths are those of the process
RENAME_EXCHANGE = 2  # Linux
RENAME_SWAP = 2  # macOS
CANNOT = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV}
"""What a file system says that doesn't exchange folders."""


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """The sibling to make the new `folder` in, for one process at a time; it is not there yet, and goes at the end.

    What a killed call left is removed first. Call `put_in_place` before the end, or nothing has happened.

    Raises:
        UserError: another process is at it, or nothing can be written beside the folder.
    """
    sibling = folder.with_name(f".{folder.name}.new")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock").open("w")
    except OSError as error:
        raise UserError(f"{folder}: can't be written: {error}.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: another llmrec is changing this bundle; wait or stop it.") from None
        shutil.rmtree(sibling, ignore_errors=True)
        try:
            yield sibling
        finally:
            shutil.rmtree(sibling, ignore_errors=True)


def put_in_place(sibling: Path, folder: Path) -> None:
    """Give the finished `sibling` the name of `folder`, which gets the sibling's if it exists; on the disk afterwards.

    Raises:
        UserError: this system or its file system can't exchange two folders.
    """
    for path in [*sibling.rglob("*"), sibling]:
        if path.exists():  # a symbolic link may lead nowhere
            _sync(path)
    if folder.exists():
        _exchange(sibling, folder)
    else:
        sibling.rename(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """Swap the names of two folders, in one step of the kernel."""
    swap = _swap_of_the_system()
    if swap is None:
        raise UserError(f"{other}: {sys.platform} can't exchange two folders in one step; name a new one with --out.")
    if swap(os.fsencode(one), os.fsencode(other)) != 0:
        error = ctypes.get_errno()
        if error in CANNOT:
            raise UserError(
                f"{other}: its file system can't exchange two folders in one step ({os.strerror(error)}); name a new "
                "one with --out."
            )
        raise OSError(error, os.strerror(error), str(other))


def _swap_of_the_system() -> Callable[[bytes, bytes], int] | None:
    """The system's call that swaps two paths and returns 0, or sets errno; None if it has none."""
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        return lambda one, other: library.renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return lambda one, other: library.renamex_np(one, other, RENAME_SWAP)
    return None
