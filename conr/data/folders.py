"""Images below a folder, at any depth: which there are, in which order, and what is left out."""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from conr.data.formats import NAMES
from conr.data.items import Item, file_items
from conr.errors import UserError
from conr.text import printable

ALREADY_SEARCHED = "a folder that was already searched under another name"
OF_A_SYSTEM = "a folder that a system, a NAS or an archive keeps for itself"
# In lower case. Trash, snapshots and thumbnails: their images would be clustered twice, or though they were deleted.
SYSTEM_FOLDERS = {
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@sharebin",
    "@tmp",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "__macosx",
    "lost+found",
    "recycler",
    "system volume information",
}
SHOWN = 3  # folders left out that are named where there is no image
SUFFIXES_SHOWN = 5


def images_below(
    root: Path, name: str, image_size: int, fit: str, exclude: Sequence[str] = ()
) -> tuple[list[Item], list[tuple[str, str]]]:
    """The images below a folder in sorted order; and (file, reason) of what is left out.

    Args:
        root: the folder.
        name: what to call it in messages.
        image_size: height and width of the pixels that an item reads.
        fit: how an image that is not square becomes so.
        exclude: patterns of names, or with a slash of paths below the folder, of files and folders to leave out.

    Raises:
        UserError: it cannot be read, or holds no image.
    """
    files, left_out = files_below(root, name, exclude)
    items, others = file_items(root, dict.fromkeys(files), image_size, fit)
    if not items:
        unread = [f"\n  {printable(folder)}: {reason}" for folder, reason in sorted(left_out)[:SHOWN]]
        sums = f" ({by_suffix([file for file, _ in others])})" if others else ""
        if any(file.endswith(".tar") for file, _ in others):
            sums += "; for images in tar files add --webdataset, or set prepare.source: webdataset"
        raise UserError(
            f"{name} holds no image at any depth ({NAMES}); {len(left_out + others)} other files{sums}"
            + "".join(unread)
        )
    return items, sorted(left_out + others)


def files_below(root: Path, name: str, exclude: Sequence[str] = ()) -> tuple[list[str], list[tuple[str, str]]]:
    """The files below a folder, relative, in sorted order; and (file, reason) of what is left out.

    Args:
        root, name, exclude: as in `images_below`.

    Raises:
        UserError: the folder cannot be read.
    """
    return _search(root, name, lambda path: _reason_to_leave_out(path, exclude))


def folder_state(root: Path, name: str, exclude: Sequence[str] = ()) -> str:
    """A short text that differs where a file below a folder is new, gone, or of another size or time of writing.

    Args:
        root, name, exclude: as in `images_below`.

    Raises:
        UserError: the folder cannot be read.
    """
    digest = hashlib.sha256()
    for file in files_below(root, name, exclude)[0]:
        with suppress(OSError):  # gone
            status = os.stat(f"{root}/{file}")  # noqa: PTH116
            digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def by_suffix(files: Sequence[str]) -> str:
    """How many files have which suffix, the most frequent first."""
    counts = Counter(PurePosixPath(file).suffix.lower() or "without a suffix" for file in files).most_common()
    shown = [f"{count:,} {printable(suffix)}" for suffix, count in counts[:SUFFIXES_SHOWN]]
    rest = sum(count for _, count in counts[SUFFIXES_SHOWN:])
    return ", ".join([*shown, *([f"{rest:,} others"] if rest else [])])


def _reason_to_leave_out(path: str, exclude: Sequence[str]) -> str:
    """Why a file or folder, given by its path below the root, is not searched; empty if it is."""
    name = path.rpartition("/")[2]
    if name.lower() in SYSTEM_FOLDERS:
        return OF_A_SYSTEM
    pattern = next((text for text in exclude if fnmatchcase(path if "/" in text else name, text.strip("/"))), None)
    return f"left out by prepare.exclude: {pattern}" if pattern else ""


def _search(
    root: Path, name: str, reason_to_leave_out: Callable[[str], str]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Files at any depth, relative, in sorted order; and the files and folders that are left out, with the reason.

    Hidden files and folders are ignored. Links are followed after all that lies in the folder itself, so that a
    folder with several names is found under its own. None is searched twice, which would give the same images twice,
    or never end.
    """
    files: list[str] = []
    skipped: list[tuple[str, str]] = []
    searched: set[tuple[int, int]] = set()
    waiting = deque([root])

    def relative(path: str | Path) -> str:
        return Path(path).relative_to(root).as_posix()

    def leave_out(error: OSError) -> None:
        if Path(error.filename) == root:
            raise UserError(f"{name} cannot be read ({error.strerror}); name a folder that you may read") from error
        skipped.append((relative(error.filename), f"a folder that cannot be read ({error.strerror})"))

    def seen(prefix: str, names: Sequence[str]) -> list[str]:
        """Those that are neither hidden nor left out."""
        kept = []
        for name in names:
            if not name.startswith("."):
                reason = reason_to_leave_out(prefix + name)
                if reason:
                    skipped.append((prefix + name, reason))
                else:
                    kept.append(name)
        return kept

    while waiting:
        for folder, folders, names in os.walk(waiting.popleft(), onerror=leave_out):
            try:
                status = Path(folder).stat()
            except OSError as error:  # gone since it was listed
                leave_out(error)
                folders.clear()
                continue
            if (status.st_dev, status.st_ino) in searched:
                skipped.append((relative(folder), ALREADY_SEARCHED))
                folders.clear()
                continue
            searched.add((status.st_dev, status.st_ino))
            prefix = "" if Path(folder) == root else f"{relative(folder)}/"
            below = sorted(seen(prefix, folders))
            links = {name for name in below if Path(folder, name).is_symlink()}
            waiting.extend(Path(folder, name) for name in below if name in links)
            folders[:] = [name for name in below if name not in links]
            files += [prefix + name for name in seen(prefix, names)]
    return sorted(files), skipped
