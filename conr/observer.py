"""How long-running code reports progress and intermediate values."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Observer:
    """Base class of all observers. Each method does nothing: a subclass overrides those that it needs.

    The progress bar, the stopwatch of `conr estimate` and the traces of the tests are observers.

    >>> class Counter(conr.Observer):
    ...     units = 0
    ...
    ...     def step_done(self, amount=1, note=""):
    ...         self.units += amount
    >>> counter, features = Counter(), numpy.eye(20, dtype="float32")
    >>> neighbors = conr.conaff_graph(features, 3, conr.ConAff(k1=4), observer=counter)
    >>> counter.units
    40
    """

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[None]:
        """Around a task of `total` units, `done` of which an earlier run has finished. Tasks are not nested."""
        yield

    def step_done(self, amount: int = 1, note: str = "") -> None:
        """`amount` more units of the task are done; the note says what came out (a count, a name)."""

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        """An epoch of a training is over and saved; the row is the one that its log gets."""

    def traced(self, name: str, value: Any) -> None:
        """A value of a training step as it is computed: tensors (to be copied, not kept), a sequence of them, a number.

        Called some twenty times a step, so it must be cheap.
        """

    @property
    def traces(self) -> bool:
        """Whether it takes values of training steps: then each step is computed anew, and none replayed."""
        return type(self).traced is not Observer.traced


SILENT = Observer()
