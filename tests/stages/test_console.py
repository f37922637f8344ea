"""The bar that a person sees: its remaining time is sensible for slow steps, too."""

from functools import partial
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from conr.stages import console
from conr.stages.console import ProgressBar


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """What a terminal gets."""
    file = StringIO()
    monkeypatch.setattr(console, "Console", partial(Console, file=file, force_terminal=True))
    return file


class Watched(Progress):
    """A bar on a clock that the test sets."""

    now = 0.0
    shown: list["Watched"]

    def __init__(self, *columns: Any, **settings: Any) -> None:
        super().__init__(*columns, get_time=lambda: Watched.now, auto_refresh=False, **settings)
        self.shown.append(self)


@pytest.fixture
def bars(screen: StringIO, monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Every bar that is drawn."""
    monkeypatch.setattr(Watched, "now", 0.0)
    monkeypatch.setattr(Watched, "shown", [], raising=False)
    monkeypatch.setattr(console, "Progress", Watched)
    return Watched.shown


def test_steps_of_minutes_have_a_remaining_time_without_what_was_done_before(bars: list[Watched]) -> None:
    observer = ProgressBar()
    with observer.task("experiments", 100, done=90):
        for _ in range(3):
            Watched.now += 300.0
            observer.step_done()
        assert bars[0].tasks[0].time_remaining == 7 * 300


def test_the_bar_shows_the_task_how_far_it_is_and_the_last_note(bars: list[Watched]) -> None:
    observer = ProgressBar()
    with observer.task("pretrain", 40, done=10):
        observer.step_done(5)
        observer.epoch_done({"epoch": 1, "loss": 0.12345})
        observer.step_done(3)
        observer.traced("gradient", None)
        (task,) = bars[0].tasks
        assert (task.description, task.completed, task.total) == ("pretrain", 18, 40)
        assert task.fields["note"] == "loss 0.123"
        observer.step_done(0, note="2 broken")
        assert task.fields["note"] == "2 broken"
    with observer.task("finetune", 7):
        observer.step_done()
    assert [bar.tasks[0].completed for bar in bars] == [18, 1]


def test_where_nobody_watches_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    file = StringIO()
    monkeypatch.setattr(console, "Console", partial(Console, file=file, force_terminal=False))
    observer = ProgressBar()
    with observer.task("pretrain", 40):
        observer.step_done()
        observer.epoch_done({"epoch": 1, "loss": 0.1})
    observer.step_done()  # after the task: nothing that could be drawn
    assert file.getvalue() == ""


def test_a_hidden_cursor_is_shown_again(screen: StringIO) -> None:
    Console(file=screen, force_terminal=True).show_cursor(False)
    console.show_cursor()
    assert screen.getvalue() == "\x1b[?25l\x1b[?25h"
