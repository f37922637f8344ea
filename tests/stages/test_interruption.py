"""A training stage that is stopped goes on where it was, and ends as if it had never been stopped."""

import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from project import BIN, run_conr, write_params

EPOCHS = {"pretrain": {"epochs": 6}, "finetune": {"epochs": 4}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after both training stages."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_params(folder, EPOCHS)
    for stage in ("prepare", "pretrain", "finetune"):
        result = run_conr(folder, stage)
        assert result.returncode == 0, result.stderr
    return folder


def stop_after_first_epoch(folder: Path, stage: str, with_signal: int) -> subprocess.Popen[str]:
    """Start a stage, stop it once it has saved a checkpoint, and return the ended process."""
    process = subprocess.Popen(
        [BIN / "conr", stage],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs, this test among them, with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(folder.glob(f".conr/checkpoints/{stage}-*/state.pt")):
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)
        assert process.returncode is None, "the stage ended before it saved a checkpoint"
    process.send_signal(with_signal)
    process.wait(timeout=60)
    return process


@pytest.mark.parametrize(
    ("stage", "with_signal", "code"),
    [
        ("pretrain", signal.SIGINT, 130),
        ("pretrain", signal.SIGKILL, -9),
        ("finetune", signal.SIGTERM, 143),
    ],
)
def test_a_stopped_stage_goes_on_and_ends_with_the_same_weights(
    undisturbed: Path, tmp_path: Path, stage: str, with_signal: int, code: int
) -> None:
    write_params(tmp_path, EPOCHS)
    (tmp_path / "artifacts").mkdir()
    for needed in ("store", "pretrain") if stage == "finetune" else ("store",):
        (tmp_path / "artifacts" / needed).symlink_to(undisturbed / "artifacts" / needed)

    stopped = stop_after_first_epoch(tmp_path, stage, with_signal)
    assert stopped.returncode == code
    weights = f"artifacts/{stage}/weights.safetensors"
    assert not (tmp_path / weights).exists()
    if with_signal != signal.SIGKILL:
        assert stopped.stderr is not None
        assert "the same command goes on after the last saved epoch" in stopped.stderr.read()

    result = run_conr(tmp_path, stage)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / weights).read_bytes() == (undisturbed / weights).read_bytes()
    assert not list((tmp_path / ".conr/checkpoints").iterdir()), "a finished run leaves no checkpoint"


def test_changed_parameters_do_not_resume(undisturbed: Path, tmp_path: Path) -> None:
    write_params(tmp_path, EPOCHS)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/store").symlink_to(undisturbed / "artifacts/store")
    stop_after_first_epoch(tmp_path, "pretrain", signal.SIGINT)
    result = run_conr(tmp_path, "pretrain", "--seed", "1", "--epochs", "1")
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "artifacts/pretrain/log.csv").read_text().splitlines()) == 2
    assert len(list((tmp_path / ".conr/checkpoints").iterdir())) == 1, "the other run's checkpoint is still there"
