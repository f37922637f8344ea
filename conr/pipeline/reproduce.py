"""`dvc repro` of the project in the current folder, in a process of its own: DVC looks for its files from there.

Of what DVC prints only warnings and errors are shown; the stages print their own summaries.
"""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

FAILED = re.compile(r"failed to run: conr \w+.*exited with (-?\d+)")


def reproduce(project: Path) -> int:
    """Run all stages of a project that are not up to date; the exit code of the first that fails, or 0."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # where conr is
    command = [sys.executable, "-m", __name__]
    return subprocess.run(command, cwd=project, env={**os.environ, "PATH": path}, check=False).returncode


def main() -> int:
    """Run the stages of the project in the current folder."""
    sys.stdout = Path(os.devnull).open("w")  # of this process: what DVC prints; stages have the real one
    from dvc.exceptions import DvcException, ReproductionError
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)
    try:
        with Repo() as repo:
            repo.reproduce()
    except ReproductionError as error:
        failed = FAILED.search(str(error.__cause__))
        if failed is not None:  # the stage has said why
            return int(failed[1]) % 256
        print(f"Error: DVC cannot run the stages: {error.__cause__ or error}", file=sys.stderr)
        return 2
    except DvcException as error:
        print(f"Error: DVC cannot run the stages: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
