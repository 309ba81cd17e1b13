"""The error for mistakes in the user's input or configuration, and disk errors in words."""

import errno
import os
import re
from pathlib import Path

_FLAG = re.compile(r"(?<![\w-])--([a-z][\w-]*(?:\.[\w-]+)*)")
_PARAMETERS = {"boost": "offsets", "max-per": "max_per_field", "model": "name"}
"""Flag -> its parameter in Python and over HTTP, if the parameter has another name."""

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
"""Error numbers whose cause is the machine, not the file: a full disk, for example."""
RIGHTS = {errno.EACCES, errno.EPERM}


class UserError(ValueError):
    """A mistake that the user can correct. The command line prints it as one line and exits with code 2.

    The message names the file, line, field or flag, the value found, the value expected, and the fix. The code writes
    it with flags; `str` shows parameters instead, since Python and HTTP have no flags:

        error = UserError("--decode.beams 0: expected at least 1.")
        str(error)              # decode.beams 0: expected at least 1.
        error.with_flags        # --decode.beams 0: expected at least 1.
        error.field             # decode.beams

    Attributes:
        with_flags: the message as the command line prints it.
        field: the first field that the message names, as a parameter; None if it names none.
    """

    def __init__(self, message: str) -> None:
        self.with_flags = " ".join(message.split())
        super().__init__(with_parameters(self.with_flags))
        first = _FLAG.search(self.with_flags)
        self.field = _parameter(first[1]) if first else None


class NotFittedError(UserError, AttributeError):
    """Something was asked of an object that only its `fit` learns."""


def with_parameters(text: str) -> str:
    """The text with each flag replaced by its parameter."""
    return _FLAG.sub(lambda found: _parameter(found[1]), text)


def _parameter(flag: str) -> str:
    """The parameter of a flag without dashes: max-per-code -> max_per_code, decode.beams -> decode.beams."""
    return _PARAMETERS.get(flag, flag.replace("-", "_"))


def system_words(error: OSError) -> str:
    """A system error in words: the file, if the error names one, and the reason."""
    what = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {what}" if isinstance(error.filename, str | bytes) else what


def refused_by_the_disk(error: BaseException, folder: Path) -> str | None:
    """The reason in words if the disk caused an error; None if something else did.

    Checks the exception and the exceptions that led to it. `folder` is the run directory: missing rights count only for
    files inside it. Libraries in C++ or Rust report disk errors only in the text of the exception.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            name = os.fsdecode(seen.filename) if isinstance(seen.filename, str | bytes) else ""
            inside = os.path.realpath(name).startswith(os.path.realpath(folder) + os.sep)
            if seen.errno in DISK or (seen.errno in RIGHTS and inside):
                return system_words(seen)
        number = re.search(r"\(os error (\d+)\)", str(seen))
        if number and int(number[1]) in DISK:
            return os.strerror(int(number[1]))
        if "PytorchStreamWriter failed writing" in str(seen):
            return "a checkpoint can't be written (is the disk full?)"
        seen = seen.__cause__ or seen.__context__
    return None
