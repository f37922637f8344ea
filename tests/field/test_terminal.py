"""What a terminal gets: no character from outside that it would obey, and no color where none is wanted."""

import os
import pty
import subprocess
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
from project import BIN
from rich.console import Console

from conr.embedding.engines.settings import LOCAL
from conr.errors import UserError
from conr.pipeline.assign import Assigned
from conr.stages import cli, console, sorting
from conr.stages.console import ProgressBar

HOSTILE = "\x1b]52;c;cm0=\x07\x1b[2J\u202egpj"
SHOWN = r"\x1b]52;c;cm0=\x07\x1b[2J\u202egpj"


def test_a_name_in_an_error_is_shown_and_not_obeyed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing() -> None:
        raise UserError(f"{HOSTILE} is broken\nnext line")

    monkeypatch.setattr(cli, "app", failing)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"Error: {SHOWN} is broken\nnext line\n"


def test_a_name_in_a_file_system_error_is_shown_and_not_obeyed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", lambda: Path(f"/no/such/{HOSTILE}").read_bytes())
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == f"Error: /no/such/{SHOWN}: No such file or directory\n"


def test_names_in_a_summary_are_shown_each_on_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Clusters:
        clusters = (0, 1)

    broken, skipped = [(f"{HOSTILE}\n.png", "empty file")], [(f"{HOSTILE}\nError: gone.txt", "no image")]
    found = Assigned(["a.png"], Clusters(), broken, skipped, "float32")  # type: ignore[arg-type]
    monkeypatch.setattr(sorting, "assign_folder", lambda *_, **__: found)
    monkeypatch.chdir(tmp_path)
    cli.run("assign", tmp_path, tmp_path / "table.csv", None, "none", "cpu", None, False, LOCAL)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == rf"1 image cannot be read, the first: {SHOWN}\n.png: empty file"
    assert lines[3] == rf"  {SHOWN}\nError: gone.txt: no image"


def test_a_note_at_the_bar_is_neither_obeyed_nor_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    file = StringIO()
    monkeypatch.setattr(console, "Console", partial(Console, file=file, force_terminal=True, width=200))
    bar = ProgressBar()
    with bar.task(f"of {HOSTILE}", 2):
        bar.step_done(note=f"[red]{HOSTILE}")
    assert HOSTILE not in file.getvalue()
    assert f"[red]{SHOWN}" in file.getvalue()


@pytest.mark.parametrize("wanted", [True, False])
def test_no_color_is_respected(wanted: bool) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"} | ({} if wanted else {"NO_COLOR": "1"})
    if wanted:
        environment.pop("NO_COLOR", None)
    with subprocess.Popen([BIN / "conr", "preset", "nothing"], stderr=theirs, env=environment) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 1000)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            said += part
    os.close(ours)
    assert process.returncode == 2
    assert b"there is no preset nothing" in said
    assert (b"\x1b" in said) == wanted
