"""Processes beside this one: Ctrl-C does not reach them, a kill ends them, and there are as many as cores."""

import os
import signal
import subprocess
import sys
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

import pytest

from conr.processes import Workers, cores


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
