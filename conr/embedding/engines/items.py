"""Images to embed that are in no store: files that are decoded as they are needed, or arrays."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from conr.data.items import Item
from conr.data.reading import Outcome, read_all, read_chunk
from conr.embedding.engines.images import Pixels


@dataclass(frozen=True)
class ItemImages:
    """Images that are in no store.

    Attributes:
        items: the images.
        size: height and width in pixels.
    """

    items: Sequence[Item]
    size: int

    def __len__(self) -> int:
        return len(self.items)

    def names(self, rows: range) -> Sequence[str]:
        """The files' names."""
        return [item.file for item in self.items[rows.start : rows.stop]]

    def read(self, parts: Sequence[range]) -> Generator[Pixels, None, None]:
        """Read parts on all cores, where that pays (`conr.data.reading.read_all`)."""
        wanted = list(chain.from_iterable(self.items[part.start : part.stop] for part in parts))
        held: list[Outcome] = []
        waiting = iter(parts)
        part = next(waiting, None)
        with closing(read_all(wanted)) as chunks:
            for _, outcomes in chunks:
                held += outcomes
                while part is not None and len(held) >= len(part):
                    yield _pixels(held[: len(part)], self.size)
                    del held[: len(part)]
                    part = next(waiting, None)

    def reader(self, part: range) -> Callable[[], Pixels]:
        """What reads a part, in another process too."""
        return partial(_read_items, [item.read for item in self.items[part.start : part.stop]], self.size)


def _read_items(readers: Sequence[Callable[[], NDArray[np.uint8]]], size: int) -> Pixels:
    return _pixels(read_chunk(readers), size)


def _pixels(outcomes: Sequence[Outcome], size: int) -> Pixels:
    good = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    reasons = [outcome if isinstance(outcome, str) else "" for outcome in outcomes]
    return Pixels(np.stack(good) if good else np.empty((0, size, size, 3), np.uint8), reasons)
