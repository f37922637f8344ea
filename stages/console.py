"""What a person sees: a progress bar with an estimate of the remaining time, quiet where nobody watches."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from conr.progress import Advance, silent

HOUR = 3600.0  # of speed tell the remaining time: a step may be an epoch, and take minutes


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A `conr.progress.Progress` that draws a bar on standard error, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        with silent(description, total, done) as advance:
            yield advance
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
    with Bars(*columns, console=console, speed_estimate_period=HOUR) as bars:
        task = bars.add_task(description, total=total, completed=done, note="")

        def report(amount: int, note: str = "") -> None:
            if note:
                bars.update(task, advance=amount, note=note)
            else:
                bars.advance(task, amount)

        yield report


def show_cursor() -> None:
    """Make the terminal's cursor visible, which a bar hides until it ends."""
    Console(stderr=True).show_cursor()
