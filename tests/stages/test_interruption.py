"""A training stage that is stopped resumes where it was, and ends as if it had never been stopped."""

import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from forked import run_conr, start_conr
from project import run_stages, tiny, write_params

from conr.pipeline.workspace import Workspace

EPOCHS = {"pretrain.epochs": 5, "finetune.epochs": 3}


@pytest.fixture(scope="module")
def undisturbed(packed: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """After both training stages, in this process."""
    workspace = Workspace.at(tmp_path_factory.mktemp("undisturbed"))
    workspace.borrow(packed, "artifacts/store")
    run_stages(workspace, tiny(EPOCHS), "pretrain", "finetune")
    return workspace


def stop_after_first_epoch(folder: Path, stage: str, with_signal: int) -> BaseProcess:
    """Start a stage, stop it once it has saved a checkpoint, and return the ended process; errors are in the folder."""
    process = start_conr(folder, stage, output=folder / "output", errors=folder / "errors")
    while not list(folder.glob(f".conr/checkpoints/{stage}-*/state.pt")):
        process.join(timeout=0.02)
        assert process.exitcode is None, "the stage ended before it saved a checkpoint"
    assert process.pid is not None
    os.kill(process.pid, with_signal)
    process.join(timeout=60)
    return process


@pytest.mark.parametrize(
    ("stage", "with_signal", "code"),
    [
        ("pretrain", signal.SIGINT, 130),
        ("pretrain", signal.SIGKILL, -9),
        ("finetune", signal.SIGTERM, 143),
    ],
)
def test_a_stopped_stage_resumes_and_ends_with_the_same_weights(
    undisturbed: Workspace, workspace: Workspace, stage: str, with_signal: int, code: int
) -> None:
    write_params(workspace.root, EPOCHS)
    if stage == "finetune":
        workspace.borrow(undisturbed, "artifacts/pretrain")
    weights, expected = (
        run.pretrained.weights if stage == "pretrain" else run.finetuned(0).weights for run in (workspace, undisturbed)
    )
    stopped = stop_after_first_epoch(workspace.root, stage, with_signal)
    assert stopped.exitcode == code
    assert not weights.exists()
    if with_signal != signal.SIGKILL:
        message = "Error: stopped; run the same command to resume after the last saved epoch\n"
        assert (workspace.root / "errors").read_text() == message

    if with_signal == signal.SIGINT:
        result = run_conr(workspace.root, stage)
        assert result.returncode == 0, result.stderr
    else:  # in this process, which need not load PyTorch again
        run_stages(workspace, tiny(EPOCHS), stage)
    assert weights.read_bytes() == expected.read_bytes()
    assert not any(workspace.checkpoint("").iterdir()), "a finished run leaves no checkpoint"
