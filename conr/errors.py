"""The exception whose message is for the user, and how it quotes other errors."""

import errno


class UserError(Exception):
    """Something that the user can correct: a path, a flag, a key, a full disk, a diverged training.

    The message names the file, flag or key and says what to do next. The command line prints it without a stack trace
    and exits with code 2.

    >>> import conr
    >>> conr.load_preset("digitz")
    Traceback (most recent call last):
    ...
    conr.errors.UserError: there is no preset digitz; did you mean digits? There are ...
    """


class Note(UserWarning):
    """Something that the user should know: what was done about a problem."""


def one_line(error: Exception) -> str:
    """The first lines of an error's message as one, without pydantic's internals: it and onnxruntime use several."""
    return " ".join(" ".join(str(error).split("\n")[:3]).partition(" [type=")[0].split())


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says that no more can be written: the disk, or what the user may use of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
