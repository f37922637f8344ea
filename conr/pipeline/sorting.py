"""Images in one folder per cluster: copied or linked, never moved, resumed by the same call."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal
from uuid import uuid4

from conr.data.store import Manifest, load_manifest
from conr.errors import UserError, disk_is_full
from conr.observer import SILENT, Observer
from conr.pipeline.naming import load_clusters, read_names
from conr.pipeline.workspace import Workspace

Link = Literal["none", "hard", "symbolic"]

TEMPORARY = re.compile(r"[0-9a-f]{32}\.tmp")  # a copy that is not whole
NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*]')  # of files, on some file system
LONGEST = 200  # bytes of a folder's name; most file systems take 255
LINKS: dict[Link, str] = {"none": "a copy", "hard": "a hard link", "symbolic": "a symbolic link"}
NO_HARD_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)  # another disk, or one without them


def sort_run(
    workspace: Workspace, folder: Path, target: Path, link: Link = "none", observer: Observer = SILENT
) -> list[str]:
    """Put the images of a finished run into one folder per cluster.

    Args:
        workspace: of the run.
        folder: the one that the images were read from (prepare.path).
        target: a folder that is new, empty, or holds a part of the same copies or links, which are kept.
        link: "none" copies, "hard" and "symbolic" link.
        observer: notified of every image.

    Returns:
        The names of the folders of all clusters.

    Raises:
        UserError: there is no finished run, its images are no files in this folder, or the target cannot be used.
    """
    manifest, found = load_manifest(workspace.store), load_clusters(workspace)
    check_files(manifest, folder)
    check_target(target, folder, str(target))
    folders = folder_names(found.count, read_names(workspace, found.identity, found.count))
    sort_files(folder, found.files, found.clusters.tolist(), folders, target, str(target), link, observer)
    return folders


def folder_names(count: int, names: Mapping[int, str]) -> list[str]:
    """The folder of each of so many clusters: its number, and its name where it has one.

    Characters that some file system does not allow in a file's name become underscores.
    """
    digits = len(str(count - 1))  # of all clusters, so that the folders are the same whatever images come
    return [f"{number:0{digits}} {_safe(names.get(number, ''))}".rstrip(" .") for number in range(count)]


def _safe(name: str) -> str:
    return NOT_IN_NAMES.sub("_", name).encode()[:LONGEST].decode(errors="ignore")


def sort_files(
    folder: Path,
    files: Sequence[str],
    clusters: Sequence[int],
    folders: Sequence[str],
    target: Path,
    what: str,
    link: Link = "none",
    observer: Observer = SILENT,
) -> None:
    """Copy or link each file to <target>/<folder of its cluster>/<its path below the source>.

    A copy has its name only once it is whole, so that a run that was stopped (by a full disk, say) is resumed by the
    same call. Copies and links that are there are kept; a copy that is older than its image, and of another size, is
    made again.

    Args:
        folder: the source.
        files: paths below it.
        clusters: of each file.
        folders: names of the clusters' folders.
        target: where they go.
        what: the target, as messages call it.
        link: "none", "hard" or "symbolic".
        observer: notified of every file.

    Raises:
        UserError: the target holds something else, or its file system has no such links.
        OSError: a file cannot be read, or its copy not be written.
    """
    names = [f"{folders[cluster]}/{file}" for file, cluster in zip(files, clusters, strict=True)]
    check_copies(target, what, set(names).__contains__)
    for left in target.rglob("*.tmp"):
        if TEMPORARY.fullmatch(left.name):
            left.unlink()
    place = {"none": _copy_whole, "hard": _link_hard, "symbolic": _link_symbolic}[link]
    with observer.task("sort", len(files)):
        for file, name in zip(files, names, strict=True):
            source, copy = folder / file, target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(copy) and not _is(copy, source, link):
                raise UserError(
                    f"{what} holds something else than what {LINKS[link]} would be: {name}; name a new folder"
                )
            place(source, copy)
            observer.step_done()


def check_target(target: Path, folder: Path, what: str) -> None:
    """Refuse a folder inside the source, whose copies a next run would sort, and one that cannot be written to."""
    if target.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{what} lies in {folder}, whose images are sorted; name a folder outside it")
    check_writable(target, what)


def check_writable(folder: Path, what: str) -> None:
    """Check that files can be written to a folder, which need not exist yet."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise UserError(f"{what}: cannot write to {there}; choose another folder")


def check_copies(target: Path, what: str, is_copy: Callable[[str], bool]) -> None:
    """Refuse a folder that holds what an interrupted run would not have left."""
    for path in sorted(path for path in target.rglob("*") if path.is_symlink() or not path.is_dir()):
        name = path.relative_to(target).as_posix()
        if not (is_copy(name) or TEMPORARY.fullmatch(path.name)):
            raise UserError(
                f"{what} holds something else than these copies, the first: {name}; name a new folder, or remove what "
                "is in it"
            )


def check_files(manifest: Manifest, folder: Path) -> None:
    """Whether the images of a store are files in a folder, and still there.

    Raises:
        UserError: they are not; a reason says what they are.
    """
    if manifest.dataset != "folder":
        raise UserError(f"the images are {manifest.source}, not files in a folder: there is nothing to copy or link")
    if manifest.source != str(folder):
        raise UserError(f"the results are of {manifest.source}, but prepare.path is {folder}; run dvc repro again")
    for file in manifest.files:
        if (folder / file).is_file():
            continue
        stack = file.rpartition("#")[0]
        if manifest.frames == "all" and (folder / stack).is_file():
            raise UserError(
                f"{file} is a page of {stack}, not a file that could be copied or linked; with prepare.frames: first, "
                "or max, each file is one image"
            )
        raise UserError(f"{folder / file} is no longer there; run dvc repro again")


def _is(copy: Path, source: Path, link: Link) -> bool:
    """Whether what is at a place is what would be put there, or an earlier state of it."""
    if link == "symbolic":
        return copy.is_symlink() and copy.readlink() == source.resolve()
    return not copy.is_symlink() and copy.is_file() and (link == "hard") == copy.samefile(source)


def _copy_whole(source: Path, copy: Path) -> None:
    if copy.exists():
        ours, theirs = copy.stat(), source.stat()
        if ours.st_size == theirs.st_size or ours.st_mtime > theirs.st_mtime:  # the same, or edited since
            return
    temporary = copy.with_name(f"{uuid4().hex}.tmp")  # not the name and more: names can be as long as may be
    try:
        shutil.copy2(source, temporary)
        temporary.replace(copy)
    except OSError as error:
        if disk_is_full(error):  # shutil names the source
            raise OSError(error.errno, error.strerror, str(copy)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _link_hard(source: Path, copy: Path) -> None:
    if copy.exists():
        return
    try:
        copy.hardlink_to(source.resolve())
    except OSError as error:
        if error.errno in NO_HARD_LINKS:
            raise UserError(
                f"{copy} cannot be a hard link to {source} ({error.strerror}): hard links need both on one file system "
                "that has them. Use --link symbolic, or no --link for copies"
            ) from error
        raise


def _link_symbolic(source: Path, copy: Path) -> None:
    if not copy.is_symlink():
        copy.symlink_to(source.resolve())
