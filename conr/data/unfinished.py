"""Packing that survives a kill: an unfinished array of images, and which items of the source its rows are of."""

import hashlib
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict

from conr.data.items import Item, Source
from conr.data.reading import CHUNK, Chunks, Outcome, read_all
from conr.data.store import IMAGES, Text
from conr.errors import UserError
from conr.files import load_json, write_json
from conr.parameters import Prepare

INTERVAL = 2.0  # seconds between two saves, at least
SAVING = 0.02  # of the time may go into saving
READERS = ("conr", "imagecodecs", "numpy", "pillow", "pillow-heif", "tifffile")  # packages that the pixels depend on


class Progress(BaseModel):
    """What an unfinished array holds.

    Attributes:
        items: so many of the source, the first, are read.
        size: of the array's file up to then, in bytes.
        broken: the positions of items that cannot be read → the reasons.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: int = 0
    size: int = 0
    broken: dict[int, Text] = {}


class Unfinished:
    """The images that are packed so far, in a folder that only one process uses at a time.

    What is saved is on the disk before the file that says so: whatever `progress` names is whole.

    Args:
        folder: made if it is missing; an earlier process may have left its images there.

    Attributes:
        folder: with all of it.
        images: the .npy file.
        progress: what an earlier process has saved.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.images, self._file = folder, folder / IMAGES, folder / "progress.json"
        self.progress, self._due = Progress(), time.monotonic() + INTERVAL
        if self.images.exists() and self._file.exists():
            with suppress(UserError):  # damaged: everything is read again
                found = load_json(self._file, Progress, "")
                if found.size <= self.images.stat().st_size:
                    self.progress = found

    @property
    def rows(self) -> int:
        """How many images the array has."""
        return self.progress.items - len(self.progress.broken)

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The array's file for writing, with the images that are whole and nothing behind them."""
        self.images.touch()
        with self.images.open("r+b") as file:
            file.truncate(self.progress.size)
            yield file

    def chunks(self, items: Sequence[Item]) -> Chunks:
        """What `read_all` yields for all items; what the array holds is taken from there."""
        done, broken = self.progress.items, self.progress.broken
        with self.images.open("rb") as file:
            if done:
                np.lib.format.read_magic(file)
                _, *shape = np.lib.format.read_array_header_1_0(file)[0]
            for first in range(0, done, CHUNK):
                numbers = range(first, min(first + CHUNK, done))
                outcomes: list[Outcome] = [
                    broken.get(number) or np.fromfile(file, np.uint8, math.prod(shape)).reshape(shape)
                    for number in numbers
                ]
                yield items[numbers.start : numbers.stop], outcomes
        yield from read_all(items[done:])

    def save(self, file: BinaryIO, items: int, broken: Mapping[int, str]) -> None:
        """Save what was written to the array's file, if the last time is long enough ago."""
        started = time.monotonic()
        if started < self._due:
            return
        file.flush()
        os.fsync(file.fileno())
        write_json(self._file, Progress(items=items, size=file.tell(), broken=dict(broken)))
        finished = time.monotonic()
        self._due = finished + max((finished - started) / SAVING, INTERVAL)

    def move_images(self, path: Path) -> None:
        """Move the array, perhaps to another disk, and delete what else is in the folder."""
        shutil.move(self.images, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        shutil.rmtree(self.folder, ignore_errors=True)


def fingerprint(source: Source, settings: Prepare, state: str) -> str:
    """A short name that differs where other images would be packed, in another way or by other code.

    Args:
        source: what is packed.
        settings: of the stage.
        state: of the source's files, before they are read (`conr.data.folders.folder_state`).
    """
    digest = hashlib.sha256(state.encode())
    digest.update(settings.model_dump_json(include={"image_size", "fit", "frames"}).encode())
    digest.update(f"{source.train_count}\0".encode())
    for item in source.items:
        digest.update(f"{item.file}\0".encode(errors="surrogateescape"))
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    digest.update("\0".join(map(_version, READERS)).encode())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
