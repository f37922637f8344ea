"""Packed images: an array, in memory or mapped from one file, or shards of bounded size; both are indexed alike."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from conr.errors import UserError, one_line
from conr.files import atomic_file, sha256_of

IMAGES, INDEX = "images.npy", "images.parquet"  # the one file; the table of the shards
MAPPED = 128  # shards at a time: each needs an open file


@dataclass(frozen=True)
class Shard:
    """A file of images: a row of the table.

    Attributes:
        file: its name, relative to the table.
        first: number of its first image.
        count: how many it holds.
        sha256: of the file.
    """

    file: str
    first: int
    count: int
    sha256: str


class ShardedImages:
    """N images of S × S pixels in shards, of which those that were used last are mapped into memory.

    It is indexed as an array is along its first axis, and gives arrays.

    Args:
        folder: of the table.
        shards: in their order, without gaps.
        size: S.
        remedy: what to do where a shard is damaged.
        count: N, if not all images of the shards belong to it.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], size: int, remedy: str, count: int | None = None) -> None:
        self.folder, self.shards, self.remedy = folder, shards, remedy
        self._count = shards[-1].first + shards[-1].count if count is None else count
        self._image = (size, size, 3)
        self._firsts = np.array([shard.first for shard in shards])
        self._mapped = lru_cache(MAPPED)(self._map)

    def __len__(self) -> int:
        return self._count

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, S, S, 3)."""
        return (self._count, *self._image)

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """uint8."""
        return np.dtype(np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All images, in memory."""
        return np.array(self[:], dtype)

    def __getitem__(self, rows: int | slice | Sequence[int] | NDArray[Any]) -> NDArray[np.uint8]:
        """Images as an array, which is mapped if they lie in one shard one after the other.

        Raises:
            IndexError: there is no such image.
            UserError: a shard is missing or damaged.
        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            return self._between(start, stop) if step == 1 else self.take(np.arange(start, stop, step))
        if isinstance(rows, int | np.integer):
            row = range(len(self))[rows]
            image: NDArray[np.uint8] = self._between(row, row + 1)[0]
            return image
        numbers = np.asarray(rows)
        if numbers.dtype == np.bool_:
            if numbers.shape != (len(self),):
                raise IndexError(f"{numbers.shape} truth values cannot choose from {len(self)} images")
            numbers = np.flatnonzero(numbers)
        numbers = numbers.astype(np.int64, casting="safe" if numbers.size else "unsafe")
        found = self.take(np.where(numbers < 0, numbers + len(self), numbers).ravel())
        return found.reshape(*numbers.shape, *self._image)

    def take(self, rows: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The (B, S, S, 3) images of (B,) numbers, in `out` if it is given. A shard is used once for all of its images.

        Raises:
            IndexError: there is no such image; negative numbers name none.
            UserError: a shard is missing or damaged.
        """
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"images {rows.min()} to {rows.max()} are asked for, and there are {len(self)}")
        found = np.empty((len(rows), *self._image), np.uint8) if out is None else out
        inside = np.searchsorted(self._firsts, rows, side="right") - 1
        order = np.argsort(inside, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(inside[order])) + 1) if len(rows) else ():
            shard = int(inside[part[0]])
            found[part] = self._mapped(shard)[rows[part] - self._firsts[shard]]
        return found

    def first(self, count: int) -> "ShardedImages":
        """The first so many images; nothing is read."""
        return ShardedImages(self.folder, self.shards, self._image[0], self.remedy, count)

    def _between(self, start: int, stop: int) -> NDArray[np.uint8]:
        number = int(np.searchsorted(self._firsts, start, side="right")) - 1
        first, end = self.shards[number].first, self.shards[number].first + self.shards[number].count
        if start < stop <= end:
            return self._mapped(number)[start - first : stop - first]
        return self.take(np.arange(start, stop))

    def _map(self, number: int) -> NDArray[np.uint8]:
        shard = self.shards[number]
        images, shape = _map_file(self.folder / shard.file, self.remedy), (shard.count, *self._image)
        if images.shape != shape or images.dtype != np.uint8:
            raise UserError(
                f"{self.folder / shard.file} holds {images.shape} {images.dtype}, {INDEX} says {shape} uint8; "
                f"{self.remedy}"
            )
        return images


ImageSource: TypeAlias = NDArray[np.uint8] | ShardedImages


def first_images(images: ImageSource, count: int) -> ImageSource:
    """The first so many images; nothing is read."""
    return images[:count] if isinstance(images, np.ndarray) else images.first(count)


def open_images(path: Path, size: int, remedy: str) -> ImageSource:
    """Open images for reading.

    Args:
        path: of `images.npy`, which is memory-mapped, or of `images.parquet`, the table of shards.
        size: height and width of the images of shards.
        remedy: what to do where something is missing or damaged.

    Raises:
        UserError: a file is missing, truncated, or no such file.
    """
    if path.name != INDEX:
        return _map_file(path, remedy)
    shards = read_index(path, remedy)
    for shard in shards:
        file, pixels = path.parent / shard.file, shard.count * size**2 * 3
        if not file.is_file():
            raise UserError(f"{file} is missing; {remedy}")
        if file.stat().st_size <= pixels:
            raise UserError(f"{file} is truncated: {shard.count:,} images take more than {pixels:,} bytes; {remedy}")
    return ShardedImages(path.parent, shards, size, remedy)


def check_shards(images: ImageSource) -> None:
    """Compare each shard, if there are any, with its hash.

    Raises:
        UserError: one is another file; it is named.
    """
    if isinstance(images, np.ndarray):
        return
    for shard in images.shards:
        path = images.folder / shard.file
        if sha256_of(path) != shard.sha256:
            raise UserError(f"{path} is not the file that {INDEX} names (SHA-256); {images.remedy}")


def shard_name(number: int) -> str:
    """The name of a shard, relative to the table."""
    return f"images/{number:05}.npy"


def write_index(path: Path, shards: Sequence[Shard]) -> None:
    """Write the table of shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_file(path) as temporary:
        table = pa.Table.from_pylist([asdict(shard) for shard in shards])
        pq.write_table(table, temporary, write_page_checksum=True)


def read_index(path: Path, remedy: str) -> list[Shard]:
    """Read what `write_index` wrote.

    Raises:
        UserError: it is missing or damaged, or does not name shards one after the other.
    """
    import pyarrow.parquet as pq

    try:
        shards = [Shard(**row) for row in pq.ParquetFile(path, page_checksum_verification=True).read().to_pylist()]
        next_image = 0
        for number, shard in enumerate(shards):
            if (shard.file, shard.first) != (shard_name(number), next_image) or shard.count < 1:
                raise ValueError(f"row {number} is {shard}")
            next_image += shard.count
        if not shards:
            raise ValueError("it names no shard")
    except Exception as error:  # pyarrow raises errors of many classes for damaged files
        raise UserError(f"{path} is missing or damaged ({one_line(error)}); {remedy}") from error
    return shards


def _map_file(path: Path, remedy: str) -> NDArray[np.uint8]:
    """An .npy file, memory-mapped.

    Its pages are copied on write: nothing is ever written to them, but PyTorch warns about read-only memory.
    """
    try:
        images: NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="c")
    except Exception as error:  # numpy parses the header as Python: damage there raises errors of many classes
        raise UserError(f"{path} is missing or damaged ({one_line(error)}); {remedy}") from error
    return images
