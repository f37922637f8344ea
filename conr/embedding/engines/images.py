"""Images to embed, as parts that this process or another one reads; those of a packed store."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from conr.data.images import ImageSource, open_images


class Pixels(NamedTuple):
    """The images of a part.

    Attributes:
        images: (G, S, S, 3) uint8, of the G that can be read.
        reasons: of all, why it cannot be read; empty if it can.
    """

    images: NDArray[np.uint8]
    reasons: list[str]


class Images(Protocol):
    """Images that are read by parts."""

    @property
    def size(self) -> int:
        """Height and width in pixels."""

    def __len__(self) -> int: ...

    def names(self, rows: range) -> Sequence[str]:
        """The files' names."""

    def read(self, parts: Sequence[range]) -> Generator[Pixels, None, None]:
        """Read parts in their order, ahead of the caller where that pays. Close the generator where it is left."""

    def reader(self, part: range) -> Callable[[], Pixels]:
        """What reads a part, in another process too."""


@dataclass(frozen=True)
class StoreImages:
    """The images of a packed store.

    Attributes:
        path: of the store's array or table of shards, from which other processes read.
        images: (N, S, S, 3) uint8, memory-mapped or in shards.
        files: the N names.
    """

    path: Path
    images: ImageSource
    files: Sequence[str]

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return int(self.images.shape[1])

    def __len__(self) -> int:
        return len(self.images)

    def names(self, rows: range) -> Sequence[str]:
        """The files' names."""
        return self.files[rows.start : rows.stop]

    def read(self, parts: Sequence[range]) -> Generator[Pixels, None, None]:
        """Parts, as a rule memory-mapped; who computes with them reads them."""
        for part in parts:
            yield Pixels(self.images[part.start : part.stop], [""] * len(part))

    def reader(self, part: range) -> Callable[[], Pixels]:
        """What reads a part, in another process too."""
        return partial(_read_rows, self.path.resolve(), self.size, part)


@cache
def _opened(path: Path, size: int) -> ImageSource:
    return open_images(path, size, "run conr prepare again, and give every node the same store")


def _read_rows(path: Path, size: int, part: range) -> Pixels:
    return Pixels(_opened(path, size)[part.start : part.stop], [""] * len(part))
