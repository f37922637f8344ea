"""Commands that compute in several processes: when they are stopped, none of them lives on."""

import signal
from pathlib import Path
from typing import Any

import endless_estimate
import pytest
from forked import start_with_pipe, stop_all
from project import run_stages, tiny, write_params

from conr.pipeline.workspace import Workspace

# A few digits, for longer than any test.
ENDLESS: dict[str, Any] = {
    "prepare.imbalance": 60.0,
    "pretrain.epochs": 900_000,
    "optimizer.schedule_epochs": 1_000_000,
    "finetune.batch_size": 128,
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "code", "seeds"),
    [(signal.SIGINT, 130, [0, 1]), (signal.SIGTERM, 143, [0]), (signal.SIGKILL, -signal.SIGKILL, [0, 1])],
)
def test_no_training_outlives_its_ablation(tmp_path: Path, number: signal.Signals, code: int, seeds: list[int]) -> None:
    workspace = Workspace.at(tmp_path)
    write_params(workspace.root, ENDLESS)
    run_stages(workspace, tiny(ENDLESS), "prepare")
    command, errors = start_with_pipe(tmp_path, "ablate", "--seeds", ",".join(map(str, seeds)), "--jobs", "2")
    try:
        while len(list(workspace.experiments.rglob("state.pt"))) < len(seeds):
            command.join(timeout=0.02)
            assert command.exitcode is None, "the command ended before its trainings saved a checkpoint"
    finally:
        written = stop_all(command, errors, number)
    assert command.exitcode == code
    if number != signal.SIGKILL:
        assert written == "Error: stopped; run the same command to resume after the last saved epoch\n"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_stopped_estimate_ends_at_once_and_leaves_no_process(
    workspace: Workspace, project: Path, number: signal.Signals, code: int
) -> None:
    command, errors = start_with_pipe(project, main=endless_estimate.main)
    try:
        while not (project / "output").exists() or (project / "output").read_text() != "trying\n":
            command.join(timeout=0.02)
            assert command.exitcode is None, "the command ended before its trial began"
    finally:
        written = stop_all(command, errors, number)
    assert command.exitcode == code
    if number != signal.SIGKILL:
        assert written.endswith("Error: stopped; run the same command to start again\n")
        assert list(workspace.scratch.iterdir()) == []
