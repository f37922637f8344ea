"""An observer that records its calls."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from conr.observer import Observer


class Recorder(Observer):
    """All calls, in order.

    Attributes:
        tasks: name, total and units done before.
        steps: amount and note.
        rows: of the epochs.
        events: "start", "step", "epoch" and "end" as they came.
    """

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int, int]] = []
        self.steps: list[tuple[int, str]] = []
        self.rows: list[dict[str, Any]] = []
        self.events: list[str] = []

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[None]:
        self.tasks.append((name, total, done))
        self.events.append("start")
        yield
        self.events.append("end")

    def step_done(self, amount: int = 1, note: str = "") -> None:
        self.steps.append((amount, note))
        self.events.append("step")

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))
        self.events.append("epoch")
