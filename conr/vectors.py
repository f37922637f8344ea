"""Vectors that may be more than memory holds: rows of .npy files, or of a column of Parquet files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conr.errors import UserError, one_line

COLUMN = "embedding"
TYPES = (np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class Vectors:
    """N vectors of D numbers, in files that are read in blocks and never mapped: memory does not grow with N.

    Attributes:
        files: in their order, .npy of (n, D) floats or .parquet with a column "embedding" of lists of D floats, which
            may be null.
        counts: rows of each file.
        dimension: D.
    """

    files: tuple[Path, ...]
    counts: tuple[int, ...]
    dimension: int

    @classmethod
    def opened(cls, paths: Sequence[Path]) -> "Vectors":
        """The vectors of some files, or of all .npy or .parquet files of folders, by name.

        Raises:
            UserError: there is no such file, one is damaged, or they have vectors of different lengths.
        """
        files: list[Path] = []
        for path in paths:
            found = sorted(path.glob("*.npy")) + sorted(path.glob("*.parquet")) if path.is_dir() else [path]
            files += found
        if not files:
            raise UserError(f"{', '.join(map(str, paths))}: no .npy or .parquet file there")
        shapes = [_shape(file) for file in files]
        first = shapes[0][1]
        for file, (_, dimension) in zip(files, shapes, strict=True):
            if dimension != first:
                raise UserError(f"{file} holds vectors of {dimension} numbers, {files[0]} of {first}")
        return cls(tuple(files), tuple(count for count, _ in shapes), first)

    def __len__(self) -> int:
        return sum(self.counts)

    def blocks(self, rows: int) -> Iterator[NDArray[np.float32]]:
        """All vectors in order, at most so many at a time; a null is a row of NaN.

        Raises:
            UserError: a file is damaged, or changed since it was opened.
        """
        for file, count in zip(self.files, self.counts, strict=True):
            seen = 0
            for block in (_npy if file.suffix == ".npy" else _parquet)(file, rows, self.dimension):
                seen += len(block)
                yield block
            if seen != count:
                raise UserError(f"{file} has {seen:,} vectors now, and had {count:,}; run the same command again")

    def sample(self, count: int, seed: int, rows: int) -> NDArray[np.float32]:
        """At most so many vectors without nulls, drawn without replacement, in order; all are read once."""
        total = len(self)
        random = np.random.default_rng(seed)
        chosen = np.arange(total) if count >= total else np.sort(random.choice(total, count, replace=False))
        found, first = [np.empty((0, self.dimension), np.float32)], 0
        for block in self.blocks(rows):
            inside = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + len(block))]
            found.append(block[inside - first])
            first += len(block)
        sampled = np.concatenate(found)
        return sampled[~np.isnan(sampled).any(1)]


def _shape(file: Path) -> tuple[int, int]:
    try:
        if file.suffix == ".npy":
            with file.open("rb") as opened:
                (count, dimension), _ = _header(opened)
                return count, dimension
        column = pq.read_schema(file).field(COLUMN).type
        if not pa.types.is_fixed_size_list(column) or not pa.types.is_floating(column.value_type):
            raise ValueError(f"its column {COLUMN} holds {column}, not lists of so many floats")
        return int(pq.read_metadata(file).num_rows), int(column.list_size)
    except Exception as error:  # numpy and pyarrow raise errors of many classes for damaged files
        raise UserError(f"{file} is missing or damaged, or holds no vectors ({one_line(error)})") from error


def _header(opened: Any) -> tuple[tuple[int, int], np.dtype[Any]]:
    version = np.lib.format.read_magic(opened)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, kind = read(opened)
    if len(shape) != 2 or fortran_order or kind not in TYPES:
        raise ValueError(f"{kind} of shape {shape}, not rows of floats")
    return shape, kind


def _npy(file: Path, rows: int, dimension: int) -> Iterator[NDArray[np.float32]]:
    with file.open("rb") as opened:
        (left, _), kind = _header(opened)
        while left:
            numbers = np.fromfile(opened, kind, min(rows, left) * dimension)
            whole = len(numbers) // dimension
            if not whole:
                return
            left -= whole
            yield numbers[: whole * dimension].reshape(whole, dimension).astype(np.float32, copy=False)


def _parquet(file: Path, rows: int, dimension: int) -> Iterator[NDArray[np.float32]]:
    try:
        for batch in pq.ParquetFile(file, page_checksum_verification=True).iter_batches(rows, columns=[COLUMN]):
            column = batch.column(0)
            values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension).astype(np.float32)
            if not column.null_count:
                yield values
                continue
            block = np.full((len(column), dimension), np.nan, np.float32)
            block[~column.is_null().to_numpy(zero_copy_only=False)] = values
            yield block
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} is damaged ({one_line(error)})") from error
