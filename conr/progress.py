"""How long-running code tells how far it is, without knowing who listens."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Called after some work is done."""

    def __call__(self, amount: int, note: str = "") -> None:
        """Report `amount` more units done; the note says what came out (a loss, a count)."""


class Progress(Protocol):
    """Opens a task of known size."""

    def __call__(self, description: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """Start a task of `total` units, `done` of which an earlier run has finished."""


@contextmanager
def silent(description: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A `Progress` that tells nobody."""

    def advance(amount: int, note: str = "") -> None:
        pass

    yield advance
