"""The launcher: what processes train together, and what becomes of one that is killed or fails."""

import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from recorder import Recorder
from small_networks import SmallEncoder, patterned, small_spec
from together import Peers
from torch import Tensor

from conr.errors import Note, UserError
from conr.models.world import World
from conr.observer import SILENT, Observer
from conr.parameters import PretrainStage
from conr.parameters.groups import Optimizer, Pretrain
from conr.training import checkpoints, launcher, weights
from conr.training.checkpoints import Checkpoint
from conr.training.launcher import choose_processes, train_together
from conr.training.pretraining import pretrain

CPU, GPU = torch.device("cpu"), torch.device("cuda")
EPOCHS, STEPS = 3, 2  # of an epoch


class Trouble(Observer):
    """Calls a function after each step, with its number."""

    def __init__(self, cause: Callable[[int], None]) -> None:
        self.cause, self.step = cause, 0

    def step_done(self, amount: int = 1, note: str = "") -> None:
        self.step += 1
        self.cause(self.step)


def training(folder: Path, cause: Callable[[int], None], observer: Observer) -> dict[str, Tensor]:
    """Weights after a training that saves every epoch. Something happens to the process of rank 1."""
    optimizer = Optimizer(warmup_epochs=0, schedule_epochs=EPOCHS)
    settings = Pretrain(epochs=EPOCHS, batch_size=8)
    parameters = PretrainStage(device="cpu", precision="float32", optimizer=optimizer, pretrain=settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "SAVING", math.inf)
        patch.setattr(weights, "Encoder", SmallEncoder)
        model = small_spec().build(seed=0).double()
        if World.current().rank == 1:
            observer = Trouble(cause)
        pretrain(model, patterned(np.arange(8 * STEPS) % 4), None, parameters, Checkpoint(folder), observer)
    return model.state_dict()


def is_killed_once(marker: Path, step: int) -> None:
    if step == STEPS + 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def fails(step: int) -> None:
    if step == 1:
        raise UserError(f"the step is too steep for {torch.get_num_threads()} threads; take the lift")


@pytest.fixture
def processes(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many to start. They are forks of a process that has imported everything, as the peers are."""
    monkeypatch.setattr(launcher, "START_METHOD", "forkserver")
    return 2


@pytest.mark.usefixtures("one_thread")
def test_after_one_of_them_is_killed_all_resume_and_end_with_the_weights_of_one_process(
    processes: int, tmp_path: Path
) -> None:
    recorder, others = Recorder(), set(multiprocessing.active_children())
    job = partial(training, tmp_path / "together", partial(is_killed_once, tmp_path / "killed"))
    with pytest.warns(Note, match="one of 2 training processes .* all start again from the last saved epoch"):
        found = train_together(job, processes, recorder)
    expected = train_together(partial(training, tmp_path / "alone", fails), 1, SILENT)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    total = EPOCHS * STEPS
    assert recorder.tasks == [("pretrain", total, 0), ("pretrain", total, STEPS)]
    assert [row["epoch"] for row in recorder.rows] == [1, 2, 3]
    assert set(multiprocessing.active_children()) == others


@pytest.mark.usefixtures("one_thread")
def test_one_that_fails_stops_all_with_its_message(processes: int, tmp_path: Path) -> None:
    torch.set_num_threads(4)
    others = set(multiprocessing.active_children())
    with pytest.raises(UserError) as caught:
        train_together(partial(training, tmp_path, fails), processes, SILENT)
    assert str(caught.value) == "the step is too steep for 2 threads; take the lift"
    assert set(multiprocessing.active_children()) == others


@pytest.mark.parametrize(
    ("gpus", "batch_size", "group", "chosen"),
    [(0, 8, 0, 1), (8, 256, 0, 8), (8, 250, 0, 5), (8, 256, 64, 4), (3, 6, 4, 1)],
)
def test_auto_takes_as_many_gpus_as_can_share_a_batch(
    monkeypatch: pytest.MonkeyPatch, gpus: int, batch_size: int, group: int, chosen: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert choose_processes("auto", GPU if gpus else CPU, "pretrain", batch_size, group) == chosen


@pytest.mark.parametrize(
    ("asked", "device", "started", "message"),
    [
        (
            3,
            CPU,
            1,
            "training.processes = 3 cannot share pretrain.batch_size = 8 equally; use auto, or one of 1, 2, 4, 8",
        ),
        (4, GPU, 1, "training.processes = 4, but PyTorch finds 2 GPUs, one for each; use auto"),
        (2, CPU, 4, "training.processes = 2, but torchrun has started 4; leave it at auto"),
        ("auto", CPU, 3, "training.processes = 3 cannot share"),
    ],
)
def test_processes_that_cannot_share_a_batch_are_refused(
    monkeypatch: pytest.MonkeyPatch, asked: int | str, device: torch.device, started: int, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if started > 1:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", str(started))
    with pytest.raises(UserError, match=message):
        choose_processes(asked, device, "pretrain", 8, 0)


def test_torchrun_settles_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert choose_processes("auto", GPU, "pretrain", 8, 0) == choose_processes(4, CPU, "pretrain", 8, 0) == 4


def goes_on_until_it_is_stopped(folder: Path, observer: Observer) -> None:
    (folder / f"process {World.current().rank}").write_text(str(os.getpid()))
    signal.pause()


def is_told_to_stop(folder: Path) -> None:
    """A command that Ctrl-C stops."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The fork server that starts this may itself have been started while Ctrl-C was held back.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    launcher.START_METHOD = "fork"  # for speed: of a process that has imported everything, and that has no threads yet
    try:
        train_together(partial(goes_on_until_it_is_stopped, folder), 2, SILENT)
    except KeyboardInterrupt:
        (folder / "stopped").touch()


@pytest.mark.usefixtures("peers")
def test_ctrl_c_stops_all(tmp_path: Path) -> None:
    command = multiprocessing.get_context("forkserver").Process(target=is_told_to_stop, args=(tmp_path,))
    command.start()
    while len(list(tmp_path.glob("process *"))) < 2:
        command.join(timeout=0.05)
        assert command.exitcode is None
    assert command.pid is not None
    os.kill(command.pid, signal.SIGINT)
    command.join(timeout=60)
    assert (command.exitcode, (tmp_path / "stopped").exists()) == (0, True)
    for path in tmp_path.glob("process *"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
