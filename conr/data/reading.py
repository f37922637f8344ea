"""Reading items: in their order, a chunk at a time, on all cores where that pays."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from conr.data.items import Item
from conr.data.opening import UnreadableImageError
from conr.errors import UserError
from conr.processes import Workers, cores

CHUNK = 64  # images read at a time
TRIAL = 0.2  # seconds of reading that show how long the rest will take
WORTH_PROCESSES = 1.0  # seconds of reading; starting them takes about half of that
PROCESSES = 16  # at most: one process packs what they read

Reader: TypeAlias = Callable[[], NDArray[np.uint8]]
Outcome: TypeAlias = NDArray[np.uint8] | str
Chunks: TypeAlias = Generator[tuple[Sequence[Item], list[Outcome]], None, None]


def read_all(items: Sequence[Item]) -> Chunks:
    """Chunks of items with the pixels of each; a failure becomes its reason.

    Short work is done here. Longer work is shared by processes, not by threads: Pillow
    holds the interpreter lock for most of the time of a small image. They run a few chunks ahead and no further, so
    that memory does not grow with the number of items.

    Raises:
        UserError: a process was killed from outside.
    """
    started = time.perf_counter()
    outcomes: list[Outcome] = []
    while len(outcomes) < min(CHUNK, len(items)) and time.perf_counter() < started + TRIAL:
        outcomes += read_chunk([items[len(outcomes)].read])
    done = len(outcomes)
    seconds_left = (time.perf_counter() - started) / max(done, 1) * (len(items) - done)
    yield items[:done], outcomes
    chunks = (items[first : first + CHUNK] for first in range(done, len(items), CHUNK))
    if seconds_left < WORTH_PROCESSES:
        for chunk in chunks:
            yield chunk, read_chunk([item.read for item in chunk])
    else:
        yield from _read_in_processes(chunks)


def read_chunk(readers: Sequence[Reader]) -> list[Outcome]:
    """The pixels of each image, or why there are none."""
    outcomes: list[Outcome] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings on odd metadata say nothing about the pixels
        for read in readers:
            try:
                outcomes.append(read())
            except UnreadableImageError as error:
                outcomes.append(str(error))
    return outcomes


def _read_in_processes(chunks: Iterable[Sequence[Item]]) -> Chunks:
    processes = min(cores(), PROCESSES)
    try:
        with Workers(processes) as pool:
            ahead: deque[tuple[Sequence[Item], Future[list[Outcome]]]] = deque()
            for chunk in chunks:
                ahead.append((chunk, pool.submit(read_chunk, [item.read for item in chunk])))
                if len(ahead) > 2 * processes:
                    chunk, future = ahead.popleft()
                    yield chunk, future.result()
            for chunk, future in ahead:
                yield chunk, future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that reads images ended early: memory ran out (free some and run the same command again), or a "
            'script lacks the line if __name__ == "__main__":'
        ) from error
