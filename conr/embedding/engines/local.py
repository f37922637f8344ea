"""Embedding in this process, on all of its cores."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from conr.embedding.engines.images import Images
from conr.embedding.session import Session, infer


class Embedded(NamedTuple):
    """The result for a part.

    Attributes:
        first: number of its first image.
        embeddings: (G, D) float32, of the G images that can be read.
        reasons: of all, why it cannot be read; empty if it can.
    """

    first: int
    embeddings: NDArray[np.float32]
    reasons: list[str]


def embed_here(session: Session, images: Images, parts: Sequence[range]) -> Generator[Embedded, None, None]:
    """Embed parts of images in their order; reading and computing overlap."""
    waiting: deque[tuple[range, list[str]]] = deque()
    with closing(images.read(parts)) as read:

        def arrays() -> Iterator[NDArray[np.uint8]]:
            for part, (pixels, reasons) in zip(parts, read, strict=True):
                waiting.append((part, reasons))
                yield pixels

        held = np.empty((0, session.get_outputs()[0].shape[1]), np.float32)
        with closing(infer(session, arrays())) as batches:
            for batch in batches:
                held = np.concatenate([held, batch])
                while waiting and len(held) >= (good := waiting[0][1].count("")):
                    part, reasons = waiting.popleft()
                    yield Embedded(part.start, held[:good], reasons)
                    held = held[good:]
        for part, reasons in waiting:  # of which no image can be read
            yield Embedded(part.start, held, reasons)
