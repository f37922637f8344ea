"""`conr` in a process of its own that need not load the libraries: it is forked from one that has loaded them.

Arguments, current folder, environment, output, signals and exit code are those of a command. Python's start and the
imports are not: tests of these run the real command (`project.run`).
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in a shell's background
    sys.argv = ["conr", *arguments]
    main()
