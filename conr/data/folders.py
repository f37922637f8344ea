"""Images below a folder, at any depth: which there are, in which order, and what is left out."""

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from conr.data.decode import SUFFIXES
from conr.data.items import Item, file_items
from conr.errors import UserError

ALREADY_SEARCHED = "a folder that was already searched under another name"
SHOWN = 3  # folders left out that are named where there is no image


def images_below(
    root: Path, name: str, image_size: int, fit: str, label_of: Callable[[str], str | None] = lambda file: None
) -> tuple[list[Item], list[tuple[str, str]]]:
    """The images below a folder in sorted order; and (file, reason) of what is left out.

    Args:
        root: the folder.
        name: what to call it in messages.
        image_size: height and width of the pixels that an item reads.
        fit: how an image that is not square becomes so.
        label_of: the label of a file, given by its name below the folder.

    Raises:
        UserError: it cannot be read, or holds no image.
    """
    files, folders = _search(root, name)
    items, others = file_items(root, {file: label_of(file) for file in files}, image_size, fit)
    if not items:
        unread = [f"\n  {folder}: {reason}" for folder, reason in sorted(folders)[:SHOWN]]
        raise UserError(
            f"{name} holds no image at any depth ({', '.join(SUFFIXES)}); {len(folders + others)} other files"
            + "".join(unread)
        )
    return items, sorted(folders + others)


def _search(root: Path, name: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Files at any depth, relative, in sorted order; and the folders that are left out, with the reason.

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

    while waiting:
        for folder, folders, names in os.walk(waiting.popleft(), onerror=leave_out):
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in searched:
                skipped.append((relative(folder), ALREADY_SEARCHED))
                folders.clear()
                continue
            searched.add((status.st_dev, status.st_ino))
            seen = sorted(name for name in folders if not name.startswith("."))
            links = {name for name in seen if Path(folder, name).is_symlink()}
            waiting.extend(Path(folder, name) for name in seen if name in links)
            folders[:] = [name for name in seen if name not in links]
            prefix = "" if Path(folder) == root else f"{relative(folder)}/"
            files += [prefix + name for name in names if not name.startswith(".")]
    return sorted(files), skipped
