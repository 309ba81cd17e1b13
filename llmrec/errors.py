"""The one error that stands for a mistake in the user's input or configuration."""


class UserError(ValueError):
    """A mistake the user can mend; the command line prints it as one line and exits with 2.

    The message names the file, line, field or flag, what was found, what was expected and the fix.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
