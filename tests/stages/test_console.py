"""The bar that a person sees: its remaining time is sensible for slow steps, too."""

from functools import partial
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from stages import console


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """What a terminal gets."""
    file = StringIO()
    monkeypatch.setattr(console, "Console", partial(Console, file=file, force_terminal=True))
    return file


def test_steps_of_minutes_have_a_remaining_time_without_what_was_done_before(
    screen: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    shown: list[console.Bars] = []

    class Watched(console.Bars):
        def __init__(self, *columns: Any, **settings: Any) -> None:
            super().__init__(*columns, get_time=lambda: now, auto_refresh=False, **settings)
            shown.append(self)

    monkeypatch.setattr(console, "Bars", Watched)
    with console.progress("experiments", 100, done=90) as advance:
        for _ in range(3):
            now += 300.0
            advance(1)
        assert shown[0].tasks[0].time_remaining == 7 * 300


def test_a_hidden_cursor_is_shown_again(screen: StringIO) -> None:
    Console(file=screen, force_terminal=True).show_cursor(False)
    console.show_cursor()
    assert screen.getvalue() == "\x1b[?25l\x1b[?25h"
