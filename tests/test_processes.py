"""Processes beside this one: Ctrl-C does not reach them, a kill ends them, and there are as many as cores."""

import os
import signal
import subprocess
import sys
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

import pytest

from conr import processes
from conr.processes import Workers, cores, machine_memory


def test_ctrl_c_is_blocked_in_a_worker_from_its_start_on() -> None:
    with Workers(1) as pool:
        assert signal.SIGINT in pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result()
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.timeout(60)
def test_a_killed_pool_ends_at_once_and_no_other_does() -> None:
    with Workers(1) as others:
        other = others.submit(os.getpid).result()
        endless: list[Future[None]] = []
        with suppress(KeyError), Workers(2, kill_on_error=True) as pool:
            pool.submit(os.getpid).result()
            endless += [pool.submit(signal.pause) for _ in range(3)]
            raise KeyError
        for future in endless:
            with pytest.raises((BrokenProcessPool, CancelledError)):
                future.result()
        assert others.submit(os.getpid).result() == other


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not tie processes to cores")
def test_cores_are_those_that_are_left_to_the_process() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from conr.processes import cores; print(cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
    assert cores() == len(os.sched_getaffinity(0))


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process's control group, in one that is in the outermost; none has a limit."""
    monkeypatch.setattr(processes, "GROUPS", tmp_path)
    monkeypatch.setattr(processes, "OWN_GROUP", tmp_path / "own")
    (tmp_path / "own").write_text("1:name=systemd:/\n0::/outer/inner\n")
    (tmp_path / "outer/inner").mkdir(parents=True)
    (tmp_path / "outer/inner/cpu.max").write_text("max 100000\n")
    (tmp_path / "outer/inner/memory.max").write_text("max\n")
    return tmp_path / "outer/inner"


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1)])
def test_a_quota_of_processor_time_counts_as_so_many_cores_rounded_up(
    group: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    (group / "cpu.max").write_text(quota)
    assert cores() == expected
    (group.parent / "cpu.max").write_text("100000 100000")
    assert cores() == 1, "the group around it has a quota of one"


def test_memory_is_that_of_the_machine_or_of_the_group_that_limits_it(
    group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    assert machine_memory() == 4_096_000
    (group.parent / "memory.max").write_text("3000000\n")
    assert machine_memory() == 3_000_000
    (group / "memory.max").write_text("2000000\n")
    assert machine_memory() == 2_000_000
    (group.parents[1] / "own").unlink()
    assert machine_memory() == 4_096_000, "without control groups"
