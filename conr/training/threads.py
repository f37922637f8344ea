"""How many threads a training on a CPU uses. Beside other work several can be slower than one, so it is measured."""

import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from torch import nn

from conr.errors import Note
from conr.files import load_json, write_json

SECONDS = 0.5  # of a measurement
LEAST_ROUNDS = 3  # of it, however slow they are
GAIN = 1.1  # how much faster more threads have to be, so that the result does not depend on chance
CHANNELS, SIZE, BATCH = 32, 16, 64  # of what is computed: a convolution of a small network, 0.9 GFLOP a round


class _Chosen(BaseModel):
    threads: int = Field(ge=1)


@contextmanager
def training_threads(asked: int | str, device: torch.device, folder: Path) -> Iterator[None]:
    """Let PyTorch and faiss use a number of threads, until the context ends.

    The number decides the order of sums, and with it the last digits of the weights. So a training that is resumed uses
    as many as it began with, and `OMP_NUM_THREADS` is left as it is.

    Args:
        asked: as training.threads: a number, or auto for those that are fastest now.
        device: of the training; on a GPU auto changes nothing.
        folder: of the training's state, where the choice is kept.
    """
    before = torch.get_num_threads()
    threads = asked if isinstance(asked, int) else before
    if asked == "auto" and device.type == "cpu" and before > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = _chosen(folder, before)
    try:
        _use(threads)
        yield
    finally:
        _use(before)


def fastest(most: int, rate: Callable[[int], float]) -> int:
    """The number of threads with the highest rate; a smaller number unless the larger one is clearly faster.

    Args:
        most: as many as there may be. Powers of two below it, and it, are compared.
        rate: number of threads → images a second, measured once. It is called in turns.
    """
    numbers = [1 << power for power in range(most.bit_length()) if 1 << power < most] + [most]
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    started = time.perf_counter()
    while len(rates[most]) < LEAST_ROUNDS or time.perf_counter() - started < SECONDS:
        for number, found in rates.items():
            found.append(rate(number))
    best = numbers[0]
    for number in numbers[1:]:
        if statistics.median(rates[number]) > GAIN * statistics.median(rates[best]):
            best = number
    return best


def _chosen(folder: Path, most: int) -> int:
    """The threads that a training began with, or those that are fastest now."""
    file = folder / "threads.json"
    if file.exists():
        return load_json(file, _Chosen, f"delete {folder}").threads
    try:
        threads = fastest(most, _Work())
    finally:
        _use(most)
    write_json(file, _Chosen(threads=threads))
    if threads < most:
        warnings.warn(
            Note(
                f"other work keeps this machine busy: training uses {threads} of {most} threads, "
                "which was faster in half a second; training.threads sets another number"
            ),
            stacklevel=3,
        )
    return threads


class _Work:
    """Forward and backward through a convolution as a small network has it."""

    def __init__(self) -> None:
        layers = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU())
        self.layers = layers.to(memory_format=torch.channels_last)
        self.images = torch.zeros(BATCH, CHANNELS, SIZE, SIZE).to(memory_format=torch.channels_last)

    def __call__(self, threads: int) -> float:
        """Images a second with so many threads."""
        _use(threads)
        started = time.perf_counter()
        self.layers(self.images).sum().backward()
        return BATCH / (time.perf_counter() - started)


def _use(threads: int) -> None:
    import faiss

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
