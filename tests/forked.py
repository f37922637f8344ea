"""`conr` in a process of its own that need not load the libraries: it is forked from one that has loaded them.

Arguments, current folder, environment, output, signals and exit code are those of a command. Python's start and the
imports are not: tests of these run the real command (`project.run`).
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

from conr.stages import cli

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([f"conr.stages.{module}" for module in (*cli.STAGES, "beside", "cluster", "console")])


def start_conr(
    folder: Path, *arguments: str, output: Path, errors: Path, main: Callable[[], object] = cli.main
) -> BaseProcess:
    """Start `conr`, or another main function, in a folder, its output in two files; it leads a process group."""
    given = (folder, arguments, dict(os.environ), output, errors, main)
    process = CONTEXT.Process(target=_conr, args=given)
    process.start()
    return process


def start_with_pipe(folder: Path, *arguments: str, main: Callable[[], object] = cli.main) -> tuple[BaseProcess, int]:
    """A command, and the end of the pipe that it and all of its processes write errors to."""
    os.mkfifo(folder / "errors")
    errors = os.open(folder / "errors", os.O_RDONLY | os.O_NONBLOCK)
    return start_conr(folder, *arguments, output=folder / "output", errors=folder / "errors", main=main), errors


def stop_all(command: BaseProcess, errors: int, number: signal.Signals) -> str:
    """Stop a command, and only it; return what it wrote to standard error when all of its processes have ended."""
    assert command.pid is not None
    try:
        os.kill(command.pid, number)
        os.set_blocking(errors, True)
        with os.fdopen(errors) as pipe:
            written = pipe.read()  # until the last process that holds the pipe has ended
        command.join(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
    return written


def run_conr(folder: Path, *arguments: str, main: Callable[[], object] = cli.main) -> CompletedProcess[str]:
    """Run `conr`, or another main function, in a folder."""
    with TemporaryDirectory() as texts:
        output, errors = Path(texts, "output"), Path(texts, "errors")
        process = start_conr(folder, *arguments, output=output, errors=errors, main=main)
        process.join(timeout=300)
        assert process.exitcode is not None, f"conr {' '.join(arguments)} does not end"
        return CompletedProcess(["conr", *arguments], process.exitcode, output.read_text(), errors.read_text())


def _conr(
    folder: Path,
    arguments: tuple[str, ...],
    environment: Mapping[str, str],
    output: Path,
    errors: Path,
    main: Callable[[], object],
) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for name, number, file in (("stdout", 1, output), ("stderr", 2, errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        setattr(sys, name, os.fdopen(number, "w", 1, closefd=False))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background,
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and under nohup
    sys.argv = ["conr", *arguments]
    main()
