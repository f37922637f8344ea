"""The GPU benchmark at toy size: every cell ends, finished ones are kept, and SIGTERM loses none of them."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conr import ModelSpec

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state after a run of all tables."""
    folder = tmp_path_factory.mktemp("gpu")
    gpu.main(["--toy", "--state", str(folder)])
    return folder


def cells_in(state: Path) -> dict[str, Any]:
    """The finished cells."""
    return json.loads((state / "cells.json").read_text())


def test_every_cell_ends(state: Path) -> None:
    cells = cells_in(state)
    assert [name for name, cell in cells.items() if "failed" in cell] == []
    assert list(cells) == list(gpu.cells(toy=True))
    spec = ModelSpec(**gpu.TOYS["toy, 16 px, batch 16"].parameters().network.layers)
    with FlopCounterMode(display=False) as counter:
        spec.build(seed=0).eval().project(torch.zeros(1, 3, 16, 16))
    for name in ("stages: toy, 16 px, batch 16, pretrain", "stages: toy, 16 px, batch 16, finetune"):
        # Two views, through two networks and back through one, which is twice the work of a forward pass.
        assert cells[name]["GFLOP per image"] == pytest.approx(8 * counter.get_total_flops() / 1e9, rel=0.1)


def test_the_parts_of_a_step_add_up(state: Path) -> None:
    for stage in ("pretrain", "finetune"):
        cell = cells_in(state)[f"parts: toy, 16 px, batch 16, {stage}"]
        shares = {part: share for part, share in cell.items() if part.endswith("%")}
        assert sum(shares.values()) == pytest.approx(100)
        assert all(share >= 0 for share in shares.values())
        absent = {part for part, share in shares.items() if share == 0}
        assert absent == (set() if stage == "finetune" else {"neighbors, %", "boundary, %"})


def test_finished_cells_are_kept_and_shown(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (state / "cells.json").read_bytes()
    gpu.main(["--toy", "--state", str(state)])
    assert (state / "cells.json").read_bytes() == before
    printed = capsys.readouterr().out
    assert printed.strip() == (state / "tables.md").read_text().strip()
    shown = [line[3:] for line in printed.splitlines() if line.startswith("## ")]
    assert shown == list(gpu.TABLES)


def test_a_stopped_cell_is_run_again_and_no_finished_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def cell(name: str, act: Callable[[], None] = lambda: None) -> Callable[[], gpu.Row]:
        def found() -> gpu.Row:
            calls.append(name)
            act()
            return {"s": 1.0}

        return found

    def stop() -> None:
        if calls.count("second") == 1:
            assert cells_in(tmp_path)["device: second"] == gpu.KILLED, "what stays if the process is killed now"
            os.kill(os.getpid(), signal.SIGTERM)

    def fail() -> None:
        raise RuntimeError("no such kernel\nthe trace")

    cells = {
        "device: first": cell("first"),
        "device: second": cell("second", stop),
        "levers: third": cell("third", fail),
    }
    monkeypatch.setattr(gpu, "cells", lambda toy: cells)
    with pytest.raises(SystemExit, match="run the same command to resume"):
        gpu.main(["--state", str(tmp_path)])
    assert list(cells_in(tmp_path)) == ["device: first"]
    gpu.main(["--state", str(tmp_path)])
    assert calls == ["first", "second", "second", "third"]
    assert cells_in(tmp_path)["levers: third"] == {"failed": "RuntimeError: no such kernel"}
    assert "| third | RuntimeError: no such kernel |" in (tmp_path / "tables.md").read_text()
