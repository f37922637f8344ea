"""Commands that compute in several processes: when they are stopped, none of them lives on."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import endless_estimate
import pytest
from forked import start_conr
from project import run_stages, tiny, write_params

from conr.pipeline.workspace import Workspace
from conr.stages import cli

# A few digits, for longer than any test.
ENDLESS: dict[str, Any] = {
    "prepare.imbalance": 60.0,
    "pretrain.epochs": 900_000,
    "optimizer.schedule_epochs": 1_000_000,
    "finetune.batch_size": 128,
}


def start(folder: Path, *arguments: str, main: Callable[[], object] = cli.main) -> tuple[BaseProcess, int]:
    """A command, and the end of the pipe that it and all of its processes write errors to."""
    os.mkfifo(folder / "errors")
    errors = os.open(folder / "errors", os.O_RDONLY | os.O_NONBLOCK)
    return start_conr(folder, *arguments, output=folder / "output", errors=folder / "errors", main=main), errors


def ended(command: BaseProcess, errors: int, number: signal.Signals) -> str:
    """Stop a command, and only it; return what it wrote to standard error when all of its processes have ended."""
    assert command.pid is not None
    try:
        os.kill(command.pid, number)
        os.set_blocking(errors, True)
        with os.fdopen(errors) as pipe:
            written = pipe.read()  # until the last process that holds the pipe has ended
        command.join(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
    return written


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "code", "seeds"),
    [(signal.SIGINT, 130, [0, 1]), (signal.SIGTERM, 143, [0]), (signal.SIGKILL, -signal.SIGKILL, [0, 1])],
)
def test_no_training_outlives_its_ablation(tmp_path: Path, number: signal.Signals, code: int, seeds: list[int]) -> None:
    workspace = Workspace.at(tmp_path)
    write_params(workspace.root, ENDLESS)
    run_stages(workspace, tiny(ENDLESS), "prepare")
    command, errors = start(tmp_path, "ablate", "--seeds", ",".join(map(str, seeds)), "--jobs", "2")
    try:
        while len(list(workspace.experiments.rglob("state.pt"))) < len(seeds):
            command.join(timeout=0.02)
            assert command.exitcode is None, "the command ended before its trainings saved a checkpoint"
    finally:
        written = ended(command, errors, number)
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
    command, errors = start(project, main=endless_estimate.main)
    try:
        while not (project / "output").exists() or (project / "output").read_text() != "trying\n":
            command.join(timeout=0.02)
            assert command.exitcode is None, "the command ended before its trial began"
    finally:
        written = ended(command, errors, number)
    assert command.exitcode == code
    if number != signal.SIGKILL:
        assert written.endswith("Error: stopped; run the same command to start again\n")
        assert list(workspace.scratch.iterdir()) == []
