"""The one exception that carries a message meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend: a path, a flag, a key, a full disk, a diverged training.

    The message names the file, flag or key and says what to do next. The command line prints it
    without a stack trace and exits with code 2.
    """
