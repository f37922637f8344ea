"""Training in several processes: PyTorch's elastic launcher starts them here, or `torchrun` on one host or several.

Under `torchrun` every process runs the same command. The one of rank 0 does what the command says, and what it trains
is trained by all; the others wait for that (`under_torchrun`).
"""

import logging
import multiprocessing
import os
import pickle
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial, wraps
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from conr.errors import Note, UserError
from conr.models.world import World
from conr.observer import SILENT, Observer
from conr.parameters.execution import cannot_share, sharing
from conr.processes import end_with_parent, no_interrupt, outer_rank, outer_size

RESTARTS = 3  # of all processes, after one was killed or lost another
START_METHOD = "spawn"  # a fork would copy the threads of libraries in any state, and cannot use a GPU
PATIENCE = timedelta(days=7)  # for the slowest process: the launchers find those that have ended
LAST_WORDS = 10.0  # seconds for what processes have sent before they ended
FEWER = "run the same command to resume, with fewer processes (training.processes) or smaller batches"

Given = ParamSpec("Given")
Result = TypeVar("Result")
Job = Callable[[Observer], Result]


def choose_processes(asked: int | str, device: torch.device, stage: str, batch_size: int, group: int) -> int:
    """How many processes share the batches of a stage.

    Args:
        asked: as training.processes: a number, or auto for as many GPUs as can share a batch equally, 1 on a CPU; under
            torchrun all of its processes.
        device: of the training.
        stage: its name, for messages.
        batch_size: of all processes.
        group: samples that share batch-norm statistics, which stay together; 0 for the whole batch.

    Raises:
        UserError: so many cannot share a batch, or are not there.
    """
    outer = outer_size()
    if outer > 1 and asked not in ("auto", outer):
        raise UserError(f"training.processes = {asked}, but torchrun has started {outer}; leave it at auto")
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if outer > 1:
        processes = outer
    elif isinstance(asked, int):
        processes = asked
    else:
        processes = max(number for number in sharing(batch_size, group) if number <= max(gpus, 1))
    if outer == 1 and gpus and processes > gpus:
        raise UserError(f"training.processes = {processes}, but PyTorch finds {gpus} GPUs, one for each; use auto")
    if problem := cannot_share(processes, stage, batch_size, group):
        raise UserError(problem)
    return processes


def train_together(job: Job[Result], processes: int, observer: Observer) -> Result:
    """Do a job in several processes, which is to train something that they can resume, and have its result.

    Where processes are started here, they train until the checkpoint is that of the finished training; then the job is
    done once more, by this process alone, which finds that nothing is left to train. Where one of them is killed, all
    start again from the last checkpoint, three times at most.

    Args:
        job: a function that can be pickled, with its arguments; all processes call it at the same time.
        processes: as `choose_processes` says; 1 for this one alone.
        observer: notified of what the process of rank 0 is notified of, except traces. Its notes become notes here.

    Raises:
        Exception: what one of the processes has raised; all are stopped then.
        UserError: processes were killed again and again.
    """
    if processes == 1:
        return job(observer)
    if outer_rank() is not None:
        return _with_others(job, observer)
    for restart in range(RESTARTS + 1):
        try:
            _start(job, processes, observer)
            break
        except ChildFailedError as error:  # without an error of its own
            lost = f"one of {processes} training processes has ended without a message"
            if restart == RESTARTS:
                raise UserError(f"{lost} {restart + 1} times, most likely because memory ran out; {FEWER}") from error
            warnings.warn(Note(f"{lost}; all start again from the last saved epoch"), stacklevel=2)
    return job(SILENT)


def under_torchrun(command: Callable[Given, str]) -> Callable[Given, str]:
    """A command that torchrun may run: the process of rank 0 does it, the others train what it trains.

    Where they fail because another one has ended, they raise a UserError.
    """

    @wraps(command)
    def first_does(*arguments: Given.args, **named: Given.kwargs) -> str:
        if outer_rank():
            _follow()
            return f"process {outer_rank()} of {outer_size()} has trained what process 0 tells of"
        summary = command(*arguments, **named)
        if outer_size() > 1:
            _dismiss()
        return summary

    return first_does


def _with_others(job: Job[Result], observer: Observer) -> Result:
    """Do a job, which the others that torchrun has started do, too."""
    with _errors_of_others():
        _join()
        World.current().share(job)
        return job(observer)


def _follow() -> None:
    """Train what the process of rank 0 trains, until its command ends."""
    warnings.simplefilter("ignore", Note)  # the process of rank 0 shows them
    with _errors_of_others():
        _join()
        while True:
            job: Job[Any] | None = World.current().share(None)
            if job is None:
                break
            job(SILENT)
        dist.destroy_process_group()


def _dismiss() -> None:
    """Let the other processes end."""
    _join()
    World.current().share(None)
    dist.destroy_process_group()


def _start(job: Job[Any], processes: int, observer: Observer) -> None:
    """Start processes that do a job, and wait for them.

    Raises:
        Exception: what one of them has raised.
        ChildFailedError: one has ended without that.
    """
    reader, writer = multiprocessing.get_context("spawn").Pipe(duplex=False)
    errors: list[Exception] = []
    relay = Thread(target=_relay, args=(reader, observer, errors), daemon=True)
    relay.start()  # before Ctrl-C is held back: it still reaches this thread
    threads = max(1, torch.get_num_threads() // processes)
    others = set(multiprocessing.active_children())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it would tell of every connection that ends
    failure = None
    try:
        with TemporaryDirectory(prefix="conr-") as folder, _no_logging(), no_interrupt():
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                start_method=START_METHOD,
                max_restarts=0,  # it would start all again after an error, too, which would come again
                signals_to_handle="",  # those that stop the command stop the processes
                logs_specs=DefaultLogsSpecs(log_dir=folder),
            )
            elastic_launch(config, _work)(job, threads, writer)
    except ChildFailedError as error:
        failure = error
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # Ctrl-C came before the launcher knew all that it had started
        writer.close()
        relay.join(LAST_WORDS)
    if failure is not None:
        raise errors[0] if errors else failure


def _relay(reader: Connection, observer: Observer, errors: list[Exception]) -> None:
    """Notify an observer of what the processes send, and collect their errors, until no process can send any more."""
    with reader, ExitStack() as task:
        while True:
            try:
                name, arguments = reader.recv()
            except EOFError:
                return
            if name == "error":
                errors.append(*arguments)
            elif name == "note":
                warnings.warn(Note(*arguments), stacklevel=2)
            elif name == "task":
                task.close()  # of processes that were killed
                task.enter_context(observer.task(*arguments))
            elif name == "end of task":
                task.close()
            else:
                getattr(observer, name)(*arguments)


class _Sender(Observer):
    """Sends what it is notified of to the process that has started this one."""

    def __init__(self, events: Connection) -> None:
        self._events = events

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[None]:
        self._events.send(("task", (name, total, done)))
        yield
        self._events.send(("end of task", ()))

    def step_done(self, amount: int = 1, note: str = "") -> None:
        self._events.send(("step_done", (amount, note)))

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        self._events.send(("epoch_done", (dict(row),)))


def _work(job: Job[Any], threads: int, events: Connection) -> None:
    """What each process does that is started here."""
    end_with_parent()
    import faiss

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    try:
        _join()
        if World.current().is_main:
            warnings.showwarning = partial(_send_note, events, warnings.showwarning)
            job(_Sender(events))
        else:
            warnings.simplefilter("ignore", Note)
            job(SILENT)
        dist.destroy_process_group()
    except Exception as error:
        if not _has_lost_another(error):
            events.send(("error", (_portable(error),)))
        raise


def _send_note(
    events: Connection, show: Callable[..., None], message: Warning | str, category: type[Warning], *others: Any
) -> None:
    """What `warnings.showwarning` is in a process that was started here."""
    if issubclass(category, Note):
        events.send(("note", (str(message),)))
    else:
        show(message, category, *others)


def _portable(error: Exception) -> Exception:
    """An error, with its traceback as a note, that can be sent to another process."""
    error.add_note(traceback.format_exc())
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("\n".join([f"{type(error).__name__}: {error}", *error.__notes__]))
    return copy


@contextmanager
def _errors_of_others() -> Iterator[None]:
    """Under torchrun: an error that says no more than that another process has ended becomes a UserError."""
    try:
        yield
    except Exception as error:
        if not _has_lost_another(error):
            raise
        which = f"process {outer_rank()} of {outer_size()} stops because another one has ended"
        raise UserError(f"{which}; read that one's message, and run the same command to resume") from error


def _has_lost_another(error: Exception) -> bool:
    """Whether an error says no more than that another process has ended. gloo has no class of its own for it."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def _join() -> None:
    """Be one of the processes that the environment tells of, if this is not so yet."""
    if dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)


@contextmanager
def _no_logging() -> Iterator[None]:
    """Keep the launcher from telling of every process that fails: its error is raised here."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)
