"""Commands that compute in several processes: when they are stopped, none of them lives on."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from project import BIN, run_stages, tiny, write_params

from conr.pipeline.workspace import Workspace

# A few digits, for longer than any test.
ENDLESS: dict[str, Any] = {
    "prepare.imbalance": 60.0,
    "pretrain.epochs": 900_000,
    "optimizer.schedule_epochs": 1_000_000,
    "finetune.batch_size": 128,
}


def ended(command: subprocess.Popen[str], number: signal.Signals) -> str:
    """Stop a command, and only it; return what it wrote to standard error when all of its processes have ended."""
    try:
        command.send_signal(number)
        _, errors = command.communicate(timeout=60)  # a pipe closes when the last process that holds it has ended
    finally:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
    return errors


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "code", "seeds"),
    [(signal.SIGINT, 130, [0, 1]), (signal.SIGTERM, 143, [0]), (signal.SIGKILL, -signal.SIGKILL, [0, 1])],
)
def test_no_training_outlives_its_ablation(tmp_path: Path, number: signal.Signals, code: int, seeds: list[int]) -> None:
    workspace = Workspace.at(tmp_path)
    write_params(workspace.root, ENDLESS)
    run_stages(workspace, tiny(ENDLESS), "prepare")
    command = subprocess.Popen(
        [BIN / "conr", "ablate", "--seeds", ",".join(map(str, seeds)), "--jobs", "2"],
        cwd=workspace.root,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts background jobs, this test among them, with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while len(list(workspace.experiments.rglob("state.pt"))) < len(seeds):
            with suppress(subprocess.TimeoutExpired):
                command.wait(timeout=0.02)
            assert command.returncode is None, "the command ended before its trainings saved a checkpoint"
    finally:
        errors = ended(command, number)
    assert command.returncode == code
    if number != signal.SIGKILL:
        assert errors == "Error: stopped; run the same command to resume after the last saved epoch\n"


# The command with trials that never end; their processes import this file, and nothing else that takes long.
ESTIMATE = """
import signal

def endless(*arguments):
    print("trying", flush=True)
    signal.pause()

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in a shell's background
    from conr.pipeline import estimate, params_file
    from conr.stages import cli

    estimate.try_out = endless
    cli.run("estimate", params_file.read())
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_stopped_estimate_ends_at_once_and_leaves_no_process(
    workspace: Workspace, project: Path, number: signal.Signals, code: int
) -> None:
    (project / "endless.py").write_text(ESTIMATE)
    command = subprocess.Popen(
        [sys.executable, "endless.py"],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert command.stdout is not None
    try:
        assert command.stdout.readline() == "trying\n"
    finally:
        errors = ended(command, number)
    assert command.returncode == code
    if number != signal.SIGKILL:
        assert errors.endswith("Error: stopped; run the same command to start again\n")
        assert list(workspace.scratch.iterdir()) == []
