"""Results that appear whole: written into a folder of their own, and renamed into place at the end."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from conr.files import ABANDONED
from conr.pipeline.workspace import RECORD, Workspace

PREFIX, SUFFIX = "unfinished-", ".tmp"


@contextmanager
def published(workspace: Workspace) -> Iterator[Workspace]:
    """Yield a workspace to write results to; without an exception they replace those of the given one.

    The temporary folder is inside the results, so that it is on their file system. What the results hold beside what
    was written (sweeps, ablation) stays. The record of the old results goes first and that of the new ones comes last:
    whatever ends the process, a record belongs to the files beside it. No file is opened for writing under its own
    name: it may be a link to a file of DVC's cache.
    """
    folder = workspace.results
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{PREFIX}*{SUFFIX}"):
        if left.lstat().st_mtime < time.time() - ABANDONED:  # of a killed process
            shutil.rmtree(left, ignore_errors=True)
    temporary = folder / f"{PREFIX}{uuid4().hex}{SUFFIX}"
    new = Workspace.at(temporary)
    try:
        new.results.mkdir(parents=True)
        yield new
        _replace(new.results, folder, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(new: Path, folder: Path, trash: Path) -> None:
    """Move all that is in a folder into another one, the record last; what was there goes into the trash."""
    record = folder / RECORD
    record.unlink(missing_ok=True)
    for path in sorted(new.iterdir(), key=lambda path: path.name == RECORD):
        target = folder / path.name
        if target.is_dir() and not target.is_symlink():  # a folder cannot be renamed onto one that is not empty
            target.rename(trash / path.name)
        elif path.is_dir():
            target.unlink(missing_ok=True)
        path.rename(target)
