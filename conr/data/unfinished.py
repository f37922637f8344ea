"""Packing that survives a kill: unfinished files of images, and which items of the source they are of."""

import hashlib
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from conr.data.items import Item, Source
from conr.data.reading import CHUNK, Chunks, Outcome, read_all
from conr.data.store import Text
from conr.data.writing import ImageWriter
from conr.errors import UserError
from conr.files import load_json, write_json
from conr.parameters import Prepare

INTERVAL = 2.0  # seconds between two saves, at least
SAVING = 0.02  # of the time may go into saving
READERS = ("conr", "imagecodecs", "numpy", "pillow", "pillow-heif", "tifffile")  # packages that the pixels depend on


class Progress(BaseModel):
    """What unfinished files of images hold.

    Attributes:
        items: so many of the source, the first, are read.
        sizes: of each file up to then, in bytes.
        broken: the positions of items that cannot be read → the reasons.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: int = 0
    sizes: list[int] = []
    broken: dict[int, Text] = {}

    @property
    def rows(self) -> int:
        """How many images the files hold."""
        return self.items - len(self.broken)


class Unfinished:
    """The images that are packed so far, in a folder that only one process uses at a time.

    What is saved is on the disk before the file that says so: whatever `progress` names is whole.

    Args:
        folder: made if it is missing; an earlier process may have left its images there.
        size: height and width of an image.
        most: images of a file (`conr.data.writing.images_of_a_shard`).

    Attributes:
        folder: with all of it.
        progress: what an earlier process has saved.
        writer: appends images to it.
    """

    def __init__(self, folder: Path, size: int, most: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._file = folder, folder / "progress.json"
        self.progress, self._due = Progress(), time.monotonic() + INTERVAL
        self.writer = ImageWriter(folder, size, most)
        if self._file.exists():
            with suppress(UserError, OSError):  # damaged: everything is read again
                found = load_json(self._file, Progress, "")
                if all(size <= self.writer.path(file).stat().st_size for file, size in enumerate(found.sizes)):
                    self.progress = found
                    self.writer = ImageWriter(folder, size, most, found.rows, found.sizes)

    def chunks(self, items: Sequence[Item]) -> Chunks:
        """What `read_all` yields for all items; what an earlier process has saved is taken from there."""
        done, broken, images = self.progress.items, self.progress.broken, self._images()
        for first in range(0, done, CHUNK):
            numbers = range(first, min(first + CHUNK, done))
            outcomes: list[Outcome] = [broken.get(number) or next(images) for number in numbers]
            yield items[numbers.start : numbers.stop], outcomes
        yield from read_all(items[done:])

    def _images(self) -> Iterator[NDArray[np.uint8]]:
        """The images that an earlier process has saved, read one by one."""
        left, shape = self.progress.rows, (self.writer.size, self.writer.size, 3)
        for number in range(len(self.progress.sizes)):
            with self.writer.path(number).open("rb") as file:
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
                for _ in range(min(left, self.writer.most)):
                    yield np.fromfile(file, np.uint8, math.prod(shape)).reshape(shape)
            left -= self.writer.most

    def save(self, items: int, broken: Mapping[int, str]) -> None:
        """Save what the writer has got, if the last time is long enough ago."""
        started = time.monotonic()
        if started < self._due:
            return
        write_json(self._file, Progress(items=items, sizes=self.writer.sync(), broken=dict(broken)))
        finished = time.monotonic()
        self._due = finished + max((finished - started) / SAVING, INTERVAL)

    def move_images(self, folder: Path) -> None:
        """Move the files of the images, perhaps to another disk, and delete what else is in the folder."""
        for number in self.writer.files:
            path = folder / self.writer.path(number).relative_to(self.folder)
            path.parent.mkdir(exist_ok=True)
            shutil.move(self.writer.path(number), path)
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
    digest.update(settings.model_dump_json(include={"image_size", "fit", "frames", "shard_size"}).encode())
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
