"""Writing packed images: to one file, or to shards of so many images each, which another process can continue."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from conr.data.images import IMAGES, Shard, shard_name
from conr.files import ArrayWriter, sha256_of

ONE_FILE = sys.maxsize  # images of a file that is no shard
MEGABYTE = 10**6


def images_of_a_shard(megabytes: int, size: int) -> int:
    """How many whole images of S × S pixels fit into a shard of so many megabytes, at least one; `ONE_FILE` for 0."""
    return max(megabytes * MEGABYTE // (size**2 * 3), 1) if megabytes else ONE_FILE


class ImageWriter:
    """Appends images to files. All but the last are full, and on the disk with their final header.

    Args:
        folder: of the files.
        size: S, height and width of an image.
        most: images of a file, or `ONE_FILE`.
        rows: images that are there.
        sizes: bytes of each file that holds them; what is behind these is overwritten.

    Attributes:
        rows: images so far.
    """

    def __init__(self, folder: Path, size: int, most: int, rows: int = 0, sizes: Sequence[int] = ()) -> None:
        self.folder, self.size, self.most, self.rows = folder, size, most, rows
        self._sizes = list(sizes)
        self._hashes: dict[int, str] = {}
        self._last: ArrayWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._last is not None:
            self._last.file.close()

    def path(self, number: int) -> Path:
        """Of a file."""
        return self.folder / (IMAGES if self.most == ONE_FILE else shard_name(number))

    @property
    def files(self) -> range:
        """The numbers of the files with images."""
        return range(-(-self.rows // self.most))

    def append(self, images: NDArray[np.uint8]) -> None:
        """Add (n, S, S, 3) images."""
        while len(images):
            last = self._last or self._open()
            part = images[: self.most - last.rows]
            last.append(part)
            self.rows, images = self.rows + len(part), images[len(part) :]
            if last.rows == self.most:
                self._close(last)

    def sync(self) -> list[int]:
        """Have all images on the disk; returns the bytes of each file."""
        if self._last is None:
            return self._sizes
        self._last.file.flush()
        os.fsync(self._last.file.fileno())
        return [*self._sizes, os.fstat(self._last.file.fileno()).st_size]

    def finish(self) -> list[Shard]:
        """Write what is missing of the last file; returns the table of shards, empty for one file."""
        if self.rows % self.most:
            self._close(self._last or self._open())  # an earlier process may have been killed before it could
        if self.most == ONE_FILE:
            return []
        ends = [min((number + 1) * self.most, self.rows) for number in self.files]
        return [
            Shard(
                shard_name(number),
                number * self.most,
                ends[number] - number * self.most,
                self._hashes.get(number) or sha256_of(self.path(number)),
            )
            for number in self.files
        ]

    def _open(self) -> ArrayWriter:
        """The file for the next image."""
        number, rows = divmod(self.rows, self.most)
        path = self.path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        file = path.open("r+b")
        file.truncate(self._sizes[number] if rows else 0)
        del self._sizes[number:]
        self._last = ArrayWriter(file, (self.size, self.size, 3), np.uint8, rows)
        return self._last

    def _close(self, last: ArrayWriter) -> None:
        last.close()
        self._sizes = self.sync()
        last.file.close()
        self._last = None
        if self.most != ONE_FILE:
            number = len(self._sizes) - 1
            self._hashes[number] = sha256_of(self.path(number))  # while its pages are in memory
