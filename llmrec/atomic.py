"""Files and folders of ours on the disk: written whole or not at all, removed only if they bear our mark.

All of llmrec that replaces, renames or removes goes through here. Whoever looks, and whatever is killed at any moment,
finds the old state or the new one. A file is written under a temporary name and then renamed. A folder is made beside
its place and then exchanged with what stands there. Nothing is removed that llmrec did not make: a folder counts as
ours only if it holds one of the `MARKS`, and a symbolic link never does.
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

from llmrec.errors import UserError
from llmrec.lock import Lock, is_at, lock_of

MARK = ".llmrec"  # of a folder that llmrec made to work in
KEY = ".key"  # of a stage that is being made: the digest of what it is made from
MANIFEST = "manifest.json"  # of a finished stage
BUNDLE = "llmrec.json"  # of a bundle

UMASK = os.umask(0)  # it can only be read by setting it
os.umask(UMASK)
AT_FDCWD = -100  # Linux: relative paths are those of the process
RENAME_EXCHANGE = 2  # Linux
RENAME_SWAP = 2  # macOS
CANNOT = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV}
"""What a file system says that doesn't exchange folders."""


class ExchangeUnsupportedError(UserError):
    """This system or its file system can't exchange two folders in one step."""


# Files.


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that appears whole or not at all, on the disk afterwards; a link of that name is replaced.

    Args:
        path: the file; its folder exists.
        write: puts the content into the open file.

    Raises:
        OSError: it can't be written; what was there is still there.
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
    """Write a file that appears whole or not at all."""
    write_file(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8 that appears whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def _created(path: Path) -> BinaryIO:
    """A new file, open for writing, that is locked while it is open; the umask gives its mode."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # where files can't be locked, nobody takes this one for a leftover
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if is_at(descriptor, path):
            return os.fdopen(descriptor, "wb")
        os.close(descriptor)  # another process took it for a leftover before it was locked


def _remove_unless_in_use(path: Path, name: str) -> None:
    """Remove what a killed `write_file` left; another process that is writing there keeps its file."""
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
    """A name as a pattern of `glob` that it alone matches."""
    return re.sub(r"([*?[])", r"[\1]", name)


# Whose a folder is.


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What the `manifest.json` of a finished stage says; None if there is none, or none that llmrec wrote."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not all(isinstance(content.get(name), str) for name in ("stage", "key")):
        return None
    return content


def _is_key(folder: Path) -> bool:
    """A kill can cut a key short."""
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
"""Name of a file that says that llmrec made its folder -> whether the file of that name in a folder is such a one."""


def is_ours(folder: Path, marks: Sequence[str]) -> bool:
    """Whether a folder bears one of these `MARKS`, or is empty so that nothing can be lost; never of a link."""
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
    """Nothing is said if the folder is ours or not there.

    Raises:
        UserError: something else has its name.
    """
    if os.path.lexists(folder) and not is_ours(folder, marks):
        what = "a link" if folder.is_symlink() else "a folder" if folder.is_dir() else "a file"
        raise UserError(f"{folder}: {what} that llmrec did not make is in the way; move or rename it.")


def mark(folder: Path) -> None:
    """Make a folder, or take an empty one, and mark it as ours.

    Raises:
        UserError: there is one already that is not ours.
    """
    require_ours(folder, (MARK,))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


# Folders.


def remove_folder(folder: Path, marks: Sequence[str]) -> None:
    """Remove a folder of ours with all in it, following no link; nothing happens if it is not there.

    Raises:
        UserError: it is not ours.
    """
    require_ours(folder, marks)
    if not folder.exists():
        return
    # The marks go last, so that a removal that was cut short can be taken up again.
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name in marks):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    folder.rmdir()


def remove_inside(path: Path, root: Path, marks: Sequence[str]) -> None:
    """Remove a folder that lies directly in `root`, which is ours; nothing happens if it is not there.

    Raises:
        UserError: `root` bears no mark, or a link or a file has the folder's name.
    """
    if not os.path.lexists(path):
        return
    if path.parent != root or not is_ours(root, marks) or path.is_symlink() or not path.is_dir():
        raise UserError(f"{path}: llmrec did not make it and does not remove it; move or rename it.")
    shutil.rmtree(path)


def discard_folder(folder: Path, trash: Path, marks: Sequence[str]) -> None:
    """Remove a folder of ours so that nobody ever finds half of it: it first gets the name `trash`.

    Raises:
        UserError: the folder, or what has the name `trash`, is not ours.
    """
    remove_folder(trash, marks)
    require_ours(folder, marks)
    if folder.exists():
        folder.rename(trash)
        remove_folder(trash, marks)


def replace_folder(new: Path, final: Path, trash: Path, marks: Sequence[str]) -> None:
    """Give the finished folder `new` the name of `final`, of which the old content, if any, goes.

    Where the file system can exchange two folders, `final` is there at any moment. Else a kill can leave `new` and
    `trash` without a `final`; the next call with the same names mends that.

    Raises:
        UserError: what has the name of `final` or `trash` is not ours.
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
def replacing(folder: Path) -> Iterator[Path]:
    """The empty sibling to make the new bundle `folder` in, for one process at a time; it goes at the end.

    What a killed call left is removed first. Call `put_in_place` before the end, or nothing has happened.

    Raises:
        UserError: another process is at it, nothing can be written beside the folder, or something that is not ours
            has the sibling's name.
    """
    sibling, marks = folder.with_name(f".{folder.name}.new"), (MARK, BUNDLE)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(lock_of(folder), f"{folder}: another llmrec is changing this bundle; wait or stop it.")
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
            with suppress(OSError):  # what stays is removed by the next call
                remove_folder(sibling, marks)


def put_in_place(sibling: Path, folder: Path) -> None:
    """Give the finished `sibling` the name of the bundle `folder`, which gets the sibling's if it exists.

    Raises:
        UserError: this system or its file system can't exchange two folders, or `folder` is no bundle of ours.
    """
    require_ours(folder, (BUNDLE,))
    (sibling / MARK).unlink(missing_ok=True)
    sync_folder(sibling)
    if folder.exists():
        _exchange(sibling, folder)
    else:
        sibling.rename(folder)
    _sync(folder.parent)


def sync_folder(folder: Path) -> None:
    """Wait until a folder with all in it is on the disk."""
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
    """Swap the names of two folders, in one step of the kernel."""
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
    """The system's call that swaps two paths and returns 0, or sets errno; None if it has none."""
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        return lambda one, other: library.renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return lambda one, other: library.renamex_np(one, other, RENAME_SWAP)
    return None


def usual_modes(folder: Path) -> None:
    """Give the safetensors files below `folder`, which the library makes readable to their owner alone, the mode that
    the umask gives to every other file."""
    for path in folder.rglob("*.safetensors"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~UMASK)
