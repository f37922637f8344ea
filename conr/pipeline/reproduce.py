"""`dvc repro` of the project in the current folder, in a process of its own: DVC looks for its files from there.

Of what DVC prints only warnings and errors are shown; the stages print their own summaries.
"""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

import psutil

CLOCKS = 2.0  # seconds by which the time that a process started can be wrong
FAILED = re.compile(r"failed to run: conr \w+.*exited with (-?\d+)")


def reproduce(project: Path, anew: str = "", variables: Mapping[str, str] | None = None) -> int:
    """Run all stages of a project that are not up to date; the exit code of the first that fails, or 0.

    Args:
        project: its folder.
        anew: a stage that is run in any case, whatever DVC knows of its inputs.
        variables: further environment variables of the stages.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # where conr is
    command = [sys.executable, "-m", __name__, *filter(None, [anew])]
    environment = {**os.environ, **(variables or {}), "PATH": path}
    return subprocess.run(command, cwd=project, env=environment, check=False).returncode


def release_locks_of_the_dead(file: Path) -> None:
    """Delete DVC's file of who reads and writes which path if none of the processes in it is alive.

    DVC keeps the lock of a killed process as long as there is any process of that number: one whose parent has not
    waited for it, or, in a container that was started again, one that has got the same number.
    """
    try:
        written, locks = file.stat().st_mtime, json.loads(file.read_bytes())
        readers = [holder for holders in locks.get("read", {}).values() for holder in holders]
        holders = {int(holder["pid"]) for holder in [*readers, *locks.get("write", {}).values()]}
    except FileNotFoundError:
        return
    except (ValueError, TypeError, AttributeError, KeyError):  # killed while it wrote the file
        holders = set()
    if not any(_is_alive(holder, written) for holder in holders):
        file.unlink()


def _is_alive(number: int, at: float) -> bool:
    """Whether the process that had a number at a time is still there."""
    try:
        process = psutil.Process(number)
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() < at + CLOCKS)
    except psutil.NoSuchProcess:
        return False


def main() -> int:
    """Run the stages of the project in the current folder."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # stages have the real one
        from dvc.exceptions import DvcException, ReproductionError
        from dvc.repo import Repo

        logging.getLogger("dvc").setLevel(logging.WARNING)
        try:
            with Repo() as repo:
                with repo.lock:
                    release_locks_of_the_dead(Path(repo.tmp_dir) / "rwlock")
                for stage in sys.argv[1:]:
                    repo.reproduce(stage, single_item=True, force=True)
                repo.reproduce()
        except ReproductionError as error:
            failed = FAILED.search(str(error.__cause__))
            if failed is not None:  # the stage has said why
                return int(failed[1]) % 256
            why = str(error.__cause__ or error)
            if isinstance(error.__cause__, FileNotFoundError):
                why = f"{error.__cause__.filename} was removed while it was read; run the same command again"
        except DvcException as error:
            why = str(error)
        else:
            return 0
    sys.stderr.write(f"Error: DVC cannot run the stages: {why}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
