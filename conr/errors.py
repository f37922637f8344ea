"""The exception whose message is for the user, and how it quotes other errors."""


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


def one_line(error: Exception) -> str:
    """The first lines of an error's message as one, without pydantic's internals: it and onnxruntime use several."""
    return " ".join(" ".join(str(error).split("\n")[:3]).partition(" [type=")[0].split())
