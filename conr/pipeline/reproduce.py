"""`dvc repro` of the project in the current folder, in a process of its own: DVC looks for its files from there.

Of what DVC prints only warnings and errors are shown; the stages print their own summaries.
"""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

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


def main() -> int:
    """Run the stages of the project in the current folder."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # stages have the real one
        from dvc.exceptions import DvcException, ReproductionError
        from dvc.repo import Repo

        logging.getLogger("dvc").setLevel(logging.WARNING)
        try:
            with Repo() as repo:
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
