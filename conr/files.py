"""Writing files so that a kill or a full disk never leaves a half-written one under its final name; and their hash."""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

ABANDONED = 3600.0  # seconds since a temporary file was last written to, after which nobody writes it any more


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed, on failure removed.

    The path is nobody else's: of several processes that write the same file, in this container or another, each
    publishes its own. What a killed one left is removed by a later one.
    """
    for left in path.parent.glob(f"{escape(path.name)}.*.tmp"):
        with suppress(FileNotFoundError):
            if left.stat().st_mtime < time.time() - ABANDONED:
                left.unlink()
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ArrayWriter:
    """Appends rows to an .npy file whose number of rows is not known before the end; memory stays flat.

    It writes through the file, not through a memory map: on a full disk a map kills the process, a write raises
    OSError.

    Args:
        file: a file opened for binary writing.
        row_shape: shape of one row.
        dtype: type of the elements.
    """

    def __init__(self, file: BinaryIO, row_shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self.file, self.row_shape, self.dtype = file, row_shape, np.dtype(dtype)
        self.rows = 0
        self._header_size = self._write_header()

    def append(self, rows: NDArray[np.generic]) -> None:
        """Add (n, *row_shape) rows.

        Raises:
            ValueError: rows of another shape.
        """
        if rows.shape[1:] != self.row_shape:
            raise ValueError(f"rows must have shape {self.row_shape}, got {rows.shape[1:]}")
        self.file.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
        self.rows += len(rows)

    def close(self) -> None:
        """Write the final number of rows into the header, in the room that numpy leaves there for it."""
        self.file.seek(0)
        if self._write_header() != self._header_size:
            raise ValueError("numpy changed the size of the .npy header")

    def _write_header(self) -> int:
        np.lib.format.write_array_header_1_0(
            self.file,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": (self.rows, *self.row_shape),
            },
        )
        return self.file.tell()
