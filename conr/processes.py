"""The machine that processes share, and processes beside this one: who ends with whom, and who may write where."""

import math
import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from filelock import FileLock, Timeout

from conr.errors import UserError

GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # Linux's control groups, version 2
CHECKED = 0.5  # seconds between two checks whether the parent is still there

Given = ParamSpec("Given")
Result = TypeVar("Result")


def cores() -> int:
    """How many cores this process may use: taskset, Slurm or a container may leave it fewer than the machine has.

    A quota of processor time (docker run --cpus 1.5) counts as so many cores, rounded up.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [text.split() for text in _limits("cpu.max")]  # microseconds, of a period of so many
    return min([there, *(math.ceil(int(quota) / int(period)) for quota, period in quotas if quota != "max")])


def processor() -> str:
    """The model of the CPU."""
    facts = Path("/proc/cpuinfo")  # of Linux; platform.processor() does not know the model there
    lines = facts.read_text().splitlines() if facts.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container that limits it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(int(text) for text in _limits("memory.max") if text != "max")])


def _limits(name: str) -> list[str]:
    """What a file says in the control group of this process and in those around it; a container sees only its own."""
    lines = OWN_GROUP.read_text().splitlines() if OWN_GROUP.is_file() else []
    group = Path(next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), ""))
    folders = [GROUPS / part for part in (group, *group.parents)]
    return [(folder / name).read_text().strip() for folder in folders if (folder / name).is_file()]


def outer_rank() -> int | None:
    """The number of this process among those that torchrun, or another launcher, has started; None without one."""
    rank = os.environ.get("RANK")
    return int(rank) if rank is not None and "WORLD_SIZE" in os.environ else None


def outer_size() -> int:
    """How many processes torchrun, or another launcher, has started to train together; 1 without one."""
    return 1 if outer_rank() is None else int(os.environ["WORLD_SIZE"])


class BusyError(UserError):
    """Another process works on what this one wants to work on."""


def end_with_parent() -> None:
    """End this process as SIGTERM does when its parent ends, however that ends: it would work on without an owner."""
    Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(CHECKED)
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def exclusive(path: Path, what: str, wait: float = 0.0) -> Iterator[None]:
    """Be the only process that works on something; the system takes this back from one that is killed.

    Args:
        path: of the lock file, which is made; a file beside it names the process.
        what: it is, for the message.
        wait: seconds until another process is taken for busy: one that is just ending still has the lock.

    Raises:
        BusyError: another process has it; it is named.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = path.with_suffix(".pid")
    lock = FileLock(path, timeout=wait)
    try:
        lock.acquire()
    except Timeout as error:
        named = ""
        with suppress(OSError):  # it may be ending just now
            named = owner.read_text(encoding="utf-8")
        raise BusyError(
            f"another conr (process {named or 'unknown'}) works on {what}; wait until it has ended, or stop it"
        ) from error
    try:
        owner.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


class Workers(ProcessPoolExecutor):
    """A pool of fresh processes that Ctrl-C does not reach, and that end when this one does, however it ends.

    Args:
        count: how many at most; each starts when there is work for it.
        initializer: called in each before any work.
        arguments: those of the initializer.
        kill_on_error: whether an exception in the block of the pool ends all processes at once, whatever they do. Only
            where results are small: the parent would wait forever for the rest of one that is larger than a pipe.
    """

    def __init__(
        self,
        count: int,
        initializer: Callable[..., None] | None = None,
        arguments: tuple[Any, ...] = (),
        kill_on_error: bool = False,
    ) -> None:
        self._kill_on_error, self._others = kill_on_error, set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads of libraries in any state
        super().__init__(count, context, _follow_parent, (initializer, arguments))

    def submit(
        self, function: Callable[Given, Result], /, *arguments: Given.args, **named: Given.kwargs
    ) -> Future[Result]:
        """Have a function called in a process, which is started here if all are busy."""
        with no_interrupt():
            return super().submit(function, *arguments, **named)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for what was asked for; after an exception only for what has begun, or for nothing."""
        if kind is not None and self._kill_on_error:
            for process in set(multiprocessing.active_children()) - self._others:
                process.kill()
        self.shutdown(cancel_futures=kind is not None)


@contextmanager
def no_interrupt() -> Iterator[None]:
    """Hold back Ctrl-C in this thread: a process that it starts meanwhile never gets it, from its first line on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow_parent(initializer: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    """Leave it to the parent what Ctrl-C means, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
