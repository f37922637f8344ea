"""Files: written whole or not at all, read by one loader per kind, which turns damage into one line for the user."""

import csv
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO, TypeVar
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from conr.errors import UserError, one_line

BLOCK = 2**22  # numbers that are checked at a time
ABANDONED = 3600.0  # seconds since a temporary file was last written to, after which its writer is taken for dead

Model = TypeVar("Model", bound=BaseModel)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed, on failure removed.

    Each writer has a path of its own: of several processes that write the same file, in this container or another,
    each publishes its own. A later writer removes what a killed one left. A missing folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a text file in UTF-8.

    File names that are no text need `errors` other than "strict": "surrogateescape" writes the bytes that they are on
    disk, "backslashreplace" and "replace" write something readable.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors, newline="")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]], errors: str = "strict") -> None:
    """Write a CSV file in UTF-8: a line of column names, then the rows; None becomes an empty cell.

    `errors` is as for `write_text`.
    """
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors=errors) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def load_table(path: Path, remedy: str, errors: str = "strict", separators: str = ",") -> list[dict[str, str]]:
    """The rows of a CSV file by column.

    Args:
        path: the file, in UTF-8.
        remedy: what to do where it is missing or damaged.
        errors: as for `write_text`.
        separators: what may stand between cells; the one that is most frequent in the first line does.

    Raises:
        UserError: it is missing, no table, or a row has more or fewer cells than there are columns.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig", errors=errors) as file:
            first = file.readline()
            file.seek(0)
            separator = max(separators, key=first.count)
            lines = [line for line in csv.reader(file, strict=True, delimiter=separator) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is missing or damaged ({error}); {remedy}") from error
    if not lines or any(len(line) != len(lines[0]) for line in lines):
        raise UserError(f"{path} is damaged (its lines differ in their number of cells, or it has none); {remedy}")
    columns, *rows = lines
    return [dict(zip(columns, row, strict=True)) for row in rows]


def write_json(path: Path, content: BaseModel) -> None:
    """Write a pydantic model as JSON, without what is None."""
    write_text(path, content.model_dump_json(indent=1, exclude_none=True) + "\n")


def load_json(path: Path, model: type[Model], remedy: str) -> Model:
    """Read what `write_json` wrote.

    Raises:
        UserError: it is missing or no such JSON; the remedy says what to do.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({one_line(error)}); {remedy}") from error


def load_array(path: Path, remedy: str) -> NDArray[np.float32]:
    """A float32 matrix of finite numbers from an .npy file, memory-mapped.

    Its pages are copied on write: nothing is ever written to them, but PyTorch warns about read-only memory.

    Raises:
        UserError: it is missing or damaged, or holds something else; the remedy says what to do.
    """
    try:
        array: NDArray[np.float32] = np.lib.format.open_memmap(path, mode="c")
    except Exception as error:  # numpy parses the header as Python: damage there raises errors of many classes
        raise UserError(f"{path} is missing or damaged ({one_line(error)}); {remedy}") from error
    if array.ndim != 2 or array.dtype != np.float32:
        raise UserError(f"{path} holds {array.dtype} {array.shape}, not a float32 matrix; {remedy}")
    rows = max(BLOCK // max(array.shape[1], 1), 1)
    if not all(np.isfinite(array[first : first + rows]).all() for first in range(0, len(array), rows)):
        raise UserError(f"{path} holds numbers that are not finite; {remedy}")
    return array


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write an .npy file."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def copy_whole(source: Path, path: Path) -> None:
    """Copy a file, whole or not at all."""
    with atomic_file(path) as temporary:
        shutil.copyfile(source, temporary)


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
        rows: so many are in the file already, and nothing behind them.
    """

    def __init__(self, file: BinaryIO, row_shape: tuple[int, ...], dtype: type[np.generic], rows: int = 0) -> None:
        self.file, self.row_shape, self.dtype = file, row_shape, np.dtype(dtype)
        self.rows = rows
        self._header_size = self._write_header()
        self.file.seek(0, os.SEEK_END)

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
        """Write the final number of rows into the header, into the padding that numpy leaves there for it."""
        if self._write_header() != self._header_size:
            raise ValueError("numpy changed the size of the .npy header")

    def _write_header(self) -> int:
        self.file.seek(0)
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.rows, *self.row_shape)}
        np.lib.format.write_array_header_1_0(self.file, header)
        return self.file.tell()
