"""Atomic changes of files and folders, and removal of only those folders that llmrec made.

All code of llmrec that replaces, renames or removes files uses this module. At any moment a reader finds the old state
or the new one, also after the process is killed. A file is written under a temporary name and then renamed. A folder is
made beside its final place and then exchanged with the folder that is there. llmrec removes nothing that it did not
make: a folder is "ours" if it holds one of the `MARKS` and is not a symbolic link.
"""

import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from llmrec.errors import UserError, system_words
from llmrec.lock import Lock, is_at, lock_of

MARK = ".llmrec"  # marks a temporary folder that llmrec made
KEY = ".key"  # in the folder of an unfinished stage: the digest of the stage's configuration and inputs
MANIFEST = "manifest.json"  # in the folder of a finished stage
BUNDLE = "llmrec.json"  # in the folder of a bundle

UMASK = os.umask(0)  # the umask can only be read by setting it
os.umask(UMASK)
AT_FDCWD = -100  # Linux: relative paths start at the working directory of the process
RENAME_EXCHANGE = 2  # Linux
RENAME_SWAP = 2  # macOS
CANNOT = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV}
"""Error numbers of a file system that can't exchange two folders."""


class ExchangeUnsupportedError(UserError):
    """This system or its file system can't exchange two folders in one step."""


# Files.


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically, and wait until it is on the disk. A symbolic link of that name is replaced.

    Args:
        path: the file; its folder exists.
        write: writes the content into the open file.

    Raises:
        OSError: the file can't be written; an old file is unchanged.
    """
    for leftover in path.parent.glob(f".{_escaped(path.name)}.*.tmp"):
        _remove_unless_in_use(leftover, rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with _created(temporary) as file:
        try:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    _sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_file(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically."""
    write_bytes(path, text.encode("utf-8"))


def _created(path: Path) -> BinaryIO:
    """Create a file and open it for writing. It is locked while it is open, and the umask sets its mode."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # where files can't be locked, no process removes leftovers either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if is_at(descriptor, path):
            return os.fdopen(descriptor, "wb")
        os.close(descriptor)  # before it was locked, another process removed it as a leftover


def _remove_unless_in_use(path: Path, name: str) -> None:
    """Remove a file that a killed `write_file` left, unless another process is writing it now."""
    if re.fullmatch(name, path.name) is None:
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and is_at(descriptor, path):
                path.unlink()
        finally:
            os.close(descriptor)


def _escaped(name: str) -> str:
    """The `glob` pattern that matches only this name."""
    return re.sub(r"([*?[])", r"[\1]", name)


# Which folders llmrec made.


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The content of the `manifest.json` of a finished stage; None if it is missing or llmrec did not write it."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not all(isinstance(content.get(name), str) for name in ("stage", "key")):
        return None
    return content


def _is_key(folder: Path) -> bool:
    """Whether the key file holds a hexadecimal digest, or the first part of one, as a killed process may leave."""
    with (folder / KEY).open("rb") as file:
        return re.fullmatch(rb"[0-9a-f]{0,64}", file.read(65)) is not None


def _is_header(folder: Path) -> bool:
    header = json.loads((folder / BUNDLE).read_bytes())
    return isinstance(header, dict) and {"schema", "llmrec", "level_sizes"} <= header.keys()


MARKS: dict[str, Callable[[Path], bool]] = {
    MARK: lambda folder: (folder / MARK).stat().st_size == 0,
    KEY: _is_key,
    MANIFEST: lambda folder: read_manifest(folder) is not None,
    BUNDLE: _is_header,
}
"""Name of a file that marks a folder as made by llmrec -> check that the file in a given folder is such a mark."""


def is_ours(folder: Path, marks: Sequence[str]) -> bool:
    """Whether a folder has one of these `MARKS`, or is empty, so that nothing can be lost. False for a link."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    names = os.listdir(folder)
    return not names or any(_bears(folder, mark) for mark in marks if mark in names)


def _bears(folder: Path, mark: str) -> bool:
    try:
        return stat.S_ISREG((folder / mark).lstat().st_mode) and MARKS[mark](folder)
    except (OSError, ValueError, RecursionError):
        return False


def require_ours(folder: Path, marks: Sequence[str]) -> None:
    """Check that the folder is ours or does not exist.

    Raises:
        UserError: a file, a link or a folder that is not ours has this name.
    """
    if os.path.lexists(folder) and not is_ours(folder, marks):
        what = "a link" if folder.is_symlink() else "a folder" if folder.is_dir() else "a file"
        raise UserError(f"{folder}: {what} that llmrec did not make is in the way; move or rename it.")


def mark(folder: Path) -> None:
    """Create a folder, or use an empty one, and mark it as ours.

    Raises:
        UserError: something that is not ours has this name.
    """
    require_ours(folder, (MARK,))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


# Folders.


def remove_folder(folder: Path, marks: Sequence[str]) -> None:
    """Remove a folder of ours and its content, without following links. Do nothing if it does not exist.

    Raises:
        UserError: the folder is not ours.
    """
    require_ours(folder, marks)
    if not folder.exists():
        return
    # The marks are removed last, so that an interrupted removal can be continued.
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name in marks):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    folder.rmdir()


def remove_inside(path: Path, root: Path, marks: Sequence[str]) -> None:
    """Remove a folder directly inside `root`, a folder of ours. Do nothing if it does not exist.

    Raises:
        UserError: `root` has none of the marks, or `path` is a link, a file or not directly inside `root`.
    """
    if not os.path.lexists(path):
        return
    if path.parent != root or not is_ours(root, marks) or path.is_symlink() or not path.is_dir():
        raise UserError(f"{path}: llmrec did not make it and does not remove it; move or rename it.")
    shutil.rmtree(path)


def discard_folder(folder: Path, trash: Path, marks: Sequence[str]) -> None:
    """Rename a folder of ours to `trash` and then remove it, so that `folder` is never incomplete.

    Raises:
        UserError: `folder` or an existing `trash` is not ours.
    """
    remove_folder(trash, marks)
    require_ours(folder, marks)
    if folder.exists():
        folder.rename(trash)
        remove_folder(trash, marks)


def replace_folder(new: Path, final: Path, trash: Path, marks: Sequence[str]) -> None:
    """Rename the finished folder `new` to `final`, and remove the old `final`, if any.

    If the file system can exchange two folders, `final` exists at any moment. If not, a killed process can leave `new`
    and `trash` but no `final`; the next call with the same names repairs that.

    Raises:
        UserError: an existing `final` or `trash` is not ours.
    """
    sync_folder(new)
    require_ours(final, marks)
    remove_folder(trash, marks)
    if final.exists():
        try:
            _exchange(new, final)
        except ExchangeUnsupportedError:
            final.rename(trash)
            new.rename(final)
        else:
            new.rename(trash)
    else:
        new.rename(final)
    _sync(final.parent)
    remove_folder(trash, marks)


@contextmanager
def replacing(folder: Path, wait: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside `folder`, in which the caller makes the new bundle.

    Only one process at a time can be in this context for the same `folder`. The context first removes what a killed
    process left, and removes the temporary folder at its end. Without a call of `put_in_place` before the end, `folder`
    stays unchanged.

    Args:
        folder: of the bundle.
        wait: wait for another process that changes the bundle, instead of raising.

    Raises:
        UserError: another process changes the bundle, nothing can be written beside `folder`, or something that is not
            ours has the name of the temporary folder.
    """
    sibling, marks = folder.with_name(f".{folder.name}.new"), (MARK, BUNDLE)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(lock_of(folder), f"{folder}: another llmrec is changing this bundle; wait or stop it.", wait)
    except OSError as error:
        raise UserError(f"{folder}: can't be written: {error}.") from None
    with lock:
        try:
            remove_folder(sibling, marks)
            mark(sibling)
        except OSError as error:
            raise UserError(f"{folder}: can't be written: {error}.") from None
        try:
            yield sibling
        finally:
            with suppress(OSError):  # the next call removes what is left
                remove_folder(sibling, marks)


def put_in_place(sibling: Path, folder: Path) -> None:
    """Rename the finished `sibling` to `folder`. If `folder` exists, the two folders exchange their names.

    Raises:
        UserError: this system or its file system can't exchange two folders, or an existing `folder` is not a bundle.
    """
    require_ours(folder, (BUNDLE,))
    (sibling / MARK).unlink(missing_ok=True)
    sync_folder(sibling)
    if folder.exists():
        _exchange(sibling, folder)
    else:
        sibling.rename(folder)
    _sync(folder.parent)


def make_folder(folder: str | Path) -> Path:
    """The folder, made with the folders above it if it does not exist.

    Raises:
        UserError: it can't be made, as a file has its name, for example.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: no folder can be made there ({system_words(error)}); name another one.") from None
    return Path(folder)


def sync_folder(folder: Path) -> None:
    """Wait until a folder and all files and folders in it are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """Exchange the names of two folders in one system call."""
    swap = _swap_of_the_system()
    if swap is None:
        raise ExchangeUnsupportedError(
            f"{other}: {sys.platform} can't exchange two folders in one step; name a new one with --out."
        )
    if swap(os.fsencode(one), os.fsencode(other)) != 0:
        error = ctypes.get_errno()
        if error in CANNOT:
            raise ExchangeUnsupportedError(
                f"{other}: its file system can't exchange two folders in one step ({os.strerror(error)}); name a new "
                "one with --out."
            )
        raise OSError(error, os.strerror(error), str(other))


def _swap_of_the_system() -> Callable[[bytes, bytes], int] | None:
    """The system call that exchanges two paths; it returns 0, or sets errno. None if the system has no such call."""
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        return lambda one, other: library.renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return lambda one, other: library.renamex_np(one, other, RENAME_SWAP)
    return None


def usual_modes(folder: Path) -> None:
    """Give all safetensors files below `folder` the mode that the umask gives to other new files.

    The safetensors library makes them readable only to their owner.
    """
    for path in folder.rglob("*.safetensors"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~UMASK)
