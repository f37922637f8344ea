"""The GPU benchmark at toy size: every cell ends, every path is right, and what is finished is not run again."""

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLES = ("device", "step", "parts", "epochs", "numerics", "levers")  # all but the one that needs lightly


def bench(state: Path, *arguments: str) -> str:
    """Run the benchmark at toy size; returns what it printed."""
    command = [sys.executable, str(ROOT / "bench/gpu.py"), "--toy", "--state", str(state), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state after a run of all tables."""
    folder = tmp_path_factory.mktemp("gpu")
    assert "0 of 41 cells are missing" in bench(folder, "--tables", *TABLES)
    return folder


def test_every_cell_ends_and_every_path_is_right(state: Path) -> None:
    cells = json.loads((state / "cells.json").read_text())
    assert [name for name, cell in cells.items() if "failed" in cell] == []
    right = {name: cell["right"] for name, cell in cells.items() if name.startswith("numerics")}
    assert len(right) == 22
    assert set(right.values()) == {"yes"}


def test_the_parts_of_a_step_add_up(state: Path) -> None:
    cells = json.loads((state / "cells.json").read_text())
    for name in ("parts: toy, 16 px, batch 16, pretrain", "parts: toy, 16 px, batch 16, finetune"):
        shares = {part: share for part, share in cells[name].items() if part.endswith("%")}
        assert sum(shares.values()) == pytest.approx(100)
        assert all(share >= 0 for share in shares.values())
        assert (shares["neighbours, %"] > 0) == (shares["boundary, %"] > 0) == name.endswith("finetune")


def test_finished_cells_are_kept_and_shown(state: Path) -> None:
    before = (state / "cells.json").read_bytes()
    tables = bench(state, "--tables", *TABLES)
    assert (state / "cells.json").read_bytes() == before
    assert (state / "tables.md").read_text() in tables
    assert [line[3:] for line in tables.splitlines() if line.startswith("## ")] == list(TABLES)


def test_a_cell_that_is_stopped_is_missing_again(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench/gpu.py"), "--toy", "--state", str(tmp_path), "--tables", "numerics"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "cells.json").exists():
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)
        assert process.returncode is None, "it ended before its first cell"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert "the same command goes on" in errors
    cells = json.loads((tmp_path / "cells.json").read_text())
    assert len(cells) < 22
    assert all("failed" not in cell for cell in cells.values())


def test_without_time_nothing_is_started(tmp_path: Path) -> None:
    assert "41 of 41 cells are missing; go on" in bench(tmp_path, "--minutes", "0", "--tables", *TABLES)
    assert not (tmp_path / "cells.json").exists()
