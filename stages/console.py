"""A progress bar with an estimate of the remaining time; nothing is shown where there is no terminal."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from conr.observer import Observer
from conr.text import printable

HOUR = 3600.0  # over which the speed is averaged for the remaining time: a step may be an epoch, and take minutes


class ProgressBar(Observer):
    """An observer that shows a bar on standard error, if that is a terminal."""

    def __init__(self) -> None:
        self._shown: tuple[Progress, TaskID] | None = None

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[None]:
        """Show the bar as long as the task runs."""
        console = Console(stderr=True)
        if not console.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description:18}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=console, speed_estimate_period=HOUR) as bars:
            self._shown = bars, bars.add_task(escape(printable(name)), total=total, completed=done, note="")
            try:
                yield
            finally:
                self._shown = None

    def step_done(self, amount: int = 1, note: str = "") -> None:
        """Move the bar."""
        if self._shown is not None:
            bars, task = self._shown
            bars.advance(task, amount)
            if note:
                bars.update(task, note=escape(printable(note)))

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        """Show the loss beside the bar."""
        self.step_done(0, f"loss {row['loss']:.3f}")


def show_cursor() -> None:
    """Make the terminal's cursor visible: a process that is killed while it shows a bar leaves it hidden."""
    Console(stderr=True).show_cursor()
