"""The one error that stands for a mistake in the user's input or configuration."""

import re

_FLAG = re.compile(r"(?<![\w-])--([a-z][\w-]*(?:\.[\w-]+)*)")
_PARAMETERS = {"boost": "offsets", "max-per": "max_per_field", "model": "name"}
"""Flags whose parameter in Python and over HTTP has another name."""


class UserError(ValueError):
    """A mistake that the user can mend; the command line prints it as one line and exits with 2.

    The message names the file, line, field or flag, what was found, what was expected and the fix. It is written with
    flags; `str` shows parameters instead, since Python and HTTP have no flags:

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


def with_parameters(text: str) -> str:
    """A text that names flags, with parameters in their place."""
    return _FLAG.sub(lambda found: _parameter(found[1]), text)


def _parameter(flag: str) -> str:
    """The parameter of a flag, without its dashes: max-per-code -> max_per_code, decode.beams as it is."""
    return _PARAMETERS.get(flag, flag.replace("-", "_"))
