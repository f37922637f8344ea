"""The launcher: what processes do together, and what becomes of one that is killed or fails."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from recorder import Recorder

from conr.errors import Note, UserError
from conr.models.world import World
from conr.observer import SILENT, Observer
from conr.training.launcher import train_together

STEPS = 4


def counted(folder: Path, trouble: Callable[[int, int], None], observer: Observer) -> list[str]:
    """A training that saves the sum of what its processes count, after each step, and goes on from it."""
    state, world, notes = folder / "state", World.current(), folder / f"process {World.current().rank}"
    done = [] if not state.exists() else state.read_text().split()
    done = world.share(done) or []
    with notes.open("a") as log:
        log.write(f"{world.size} processes, {torch.get_num_threads()} threads, from step {len(done)}\n")
    with observer.task("count", STEPS, len(done)):
        for step in range(len(done), STEPS):
            trouble(world.rank, step)
            ranks = world.gather(torch.tensor([world.rank]))
            done.append("-".join(map(str, ranks.tolist())))
            if world.is_main:
                state.write_text(" ".join(done))
            observer.step_done(note=f"step {step}")
            observer.epoch_done({"loss": 0.5})
    return done


def killed_once_and_failing(folder: Path, rank: int, step: int) -> None:
    """The process of rank 1 is killed in step 2, the first time, and fails in step 3."""
    marker = folder / "killed"
    if rank == 1 and step == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1 and step == 3:
        raise UserError("the third step is too steep; take the lift")


def no_trouble(rank: int, step: int) -> None:
    pass


def test_one_process_does_the_job_itself(tmp_path: Path) -> None:
    assert train_together(partial(counted, tmp_path, no_trouble), 1, SILENT) == ["0"] * STEPS
    assert [path.name for path in tmp_path.glob("process*")] == ["process 0"]


@pytest.mark.timeout(120)
def test_a_killed_process_restarts_and_a_failing_one_stops_all_with_its_message(tmp_path: Path) -> None:
    before, recorder = torch.get_num_threads(), Recorder()
    torch.set_num_threads(4)
    try:
        job = partial(counted, tmp_path, partial(killed_once_and_failing, tmp_path))
        with pytest.warns(Note, match="from the last saved epoch"), pytest.raises(UserError) as caught:
            train_together(job, 2, recorder)
    finally:
        torch.set_num_threads(before)
    assert str(caught.value) == "the third step is too steep; take the lift"
    assert (tmp_path / "state").read_text() == "0-1 0-1 0-1"
    for rank in (0, 1):
        lines = (tmp_path / f"process {rank}").read_text().splitlines()
        assert lines == [f"2 processes, 2 threads, from step {step}" for step in (0, 2)]
    assert recorder.tasks == [("count", STEPS, 0), ("count", STEPS, 2)]
    assert [note for _, note in recorder.steps] == ["step 0", "step 1", "step 2"]
    assert recorder.rows == [{"loss": 0.5}] * 3
    assert multiprocessing.active_children() == []
