"""A run has one owner: who writes has the workspace to itself, ends with what started it, and shares no checkpoint."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from forked import start_with_pipe, stop_all
from project import BIN, refused, run_stages, tiny, write_params

from conr.errors import UserError
from conr.observer import Observer
from conr.parameters import PretrainStage
from conr.pipeline import workspace as module
from conr.pipeline.ablation import ablate
from conr.pipeline.evaluate import evaluate
from conr.pipeline.extract import extract
from conr.pipeline.finetune import finetune
from conr.pipeline.prepare import prepare
from conr.pipeline.pretrain import pretrain
from conr.pipeline.workspace import Workspace
from conr.processes import exclusive
from conr.stages import cli

LONG = {"prepare.imbalance": 60.0, "pretrain.epochs": 900_000, "optimizer.schedule_epochs": 1_000_000}
# Holds the workspace of the current folder until it is killed.
HOLDER = """
from conr import Workspace; import signal
with Workspace.here().locked():
    print("held", flush=True); signal.pause()
"""


@pytest.fixture
def project(packed: Workspace, tmp_path: Path) -> Path:
    """A folder with a tiny params.yaml and the packed digits."""
    write_params(tmp_path)
    Workspace.at(tmp_path).borrow(packed, "artifacts/store")
    return tmp_path


@pytest.mark.parametrize("stage", ["prepare", "evaluate"])
def test_a_second_command_names_the_first_and_changes_nothing(stage: str, project: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER], cwd=project, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = sorted(path for path in project.rglob("*") if path.is_file())
        message = refused(project, stage)
        assert message == (
            f"Error: another conr (process {holder.pid}) works on {project}; wait until it has ended, or stop it"
        )
        assert sorted(path for path in project.rglob("*") if path.is_file()) == before
        holder.kill()


def test_a_killed_owner_leaves_nothing_in_the_way(project: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER], cwd=project, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    with Workspace.at(project).locked():
        pass


def test_two_workspaces_have_a_lock_each(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    with Workspace(tmp_path / "one", scratch).locked(), Workspace(tmp_path / "two", scratch).locked():
        pass


def test_a_lock_waits_for_one_that_is_just_ending(tmp_path: Path) -> None:
    held = exclusive(tmp_path / "a.lock", "a")
    held.__enter__()
    with pytest.raises(UserError, match=rf"^another conr \(process {os.getpid()}\) works on it; "):
        exclusive(tmp_path / "a.lock", "it").__enter__()
    ending = Thread(target=held.__exit__, args=(None, None, None))
    ending.start()
    with exclusive(tmp_path / "a.lock", "a", wait=30):
        ending.join()


def main_of_dvc() -> None:
    """Start the command as DVC does, and wait for it."""
    stage = os.fork()
    if stage == 0:
        cli.main()
    os.waitpid(stage, 0)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_stage_that_dvc_has_started_ends_with_it(
    project: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params(project, LONG)
    Workspace.at(project).store.unlink()
    run_stages(Workspace.at(project), tiny(LONG), "prepare")
    monkeypatch.setenv("DVC_STAGE", "pretrain")  # as DVC sets it for its commands
    parent, errors = start_with_pipe(project, "pretrain", main=main_of_dvc)
    try:
        while not list(project.rglob("state.pt")):
            parent.join(timeout=0.02)
            assert parent.exitcode is None
    finally:
        written = stop_all(parent, errors, number)
    assert written.endswith("Error: stopped; run the same command to resume after the last saved epoch\n")


def test_a_command_that_dvc_has_not_started_lives_on(project: Path) -> None:
    write_params(project, {"pretrain.epochs": 3})
    script = f"nohup {BIN / 'conr'} pretrain > out 2>&1 & echo started"
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    subprocess.run(["sh", "-c", script], cwd=project, env=environment, check=True, capture_output=True)
    deadline = time.monotonic() + 100
    while not (project / "artifacts/pretrain/log.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (project / "artifacts/pretrain/log.csv").exists(), (project / "out").read_text()


class _Inner(Observer):
    """Runs the same training in another workspace with the same scratch space, in the middle of the first."""

    def __init__(self, inner: Workspace, parameters: PretrainStage) -> None:
        self.inner, self.parameters, self.ran = inner, parameters, False

    def epoch_done(self, row: Any) -> None:
        if not self.ran:
            self.ran = True
            pretrain(self.inner, self.parameters)


def test_equal_trainings_with_one_scratch_space_do_not_disturb_each_other(tmp_path: Path) -> None:
    """As `dvc queue start --jobs 2` runs experiments that share their pretraining."""
    parameters = PretrainStage.of(tiny({"pretrain.epochs": 3}))
    first, second = (Workspace(tmp_path / name, tmp_path / "scratch") for name in ("first", "second"))
    run_stages(first, tiny({"prepare.imbalance": 60.0}), "prepare")
    second.borrow(first, "artifacts/store")
    logs = pretrain(first, parameters, _Inner(second, parameters))
    assert len(logs) == 3
    assert first.pretrained.weights.read_bytes() == second.pretrained.weights.read_bytes()
    assert not any((tmp_path / "scratch/checkpoints").iterdir())


def test_the_body_of_a_stage_holds_its_workspace(workspace: Workspace) -> None:
    class Meanwhile(Observer):
        refused = ""

        def epoch_done(self, row: Any) -> None:
            code = "from conr import Workspace\nwith Workspace.here().locked(): pass"
            done = subprocess.run([sys.executable, "-c", code], cwd=workspace.root, capture_output=True, text=True)
            self.refused = done.stderr

    meanwhile = Meanwhile()
    pretrain(workspace, PretrainStage.of(tiny({"pretrain.epochs": 1})), meanwhile)
    assert f"process {os.getpid()}" in meanwhile.refused


def test_every_body_holds_its_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENDING", 0.0)
    workspace = Workspace.at(tmp_path)
    with workspace.locked():
        for body in (prepare, pretrain, finetune, extract, evaluate, ablate):
            with pytest.raises(UserError, match="works on"):
                body(workspace, tiny(), *([[0]] if body is ablate else []))
