"""Images that do not fit into memory: what streaming them costs a training.

    make bench-streaming      # about three minutes on two quiet CPU cores

Pretraining on images in memory, memory-mapped, and memory-mapped and read ahead as where they take more than
half of the memory: images per second of wall time and of processor time, in turns in one process, medians; and the
median of the rounds' ratios to images in memory. The file is in the page cache, so that this is the cost of the way,
not of the disk.

Then files of a gigabyte that are not in the page cache, read in batches of 128 images by the reader alone: in an order
that is shuffled as a whole, and by shards and within groups of shards, which are smaller here, as the files are.
Batches of a quarter of the file, in turns, medians.
"""

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import torch
from common import head, in_turns, line, parser
from numpy.typing import NDArray
from training_step import NETWORKS, Case, EnoughStepsError, Stopwatch, random_pixels

from conr.parameters import PretrainStage
from conr.training import streaming
from conr.training.checkpoints import Checkpoint
from conr.training.compute import Compute
from conr.training.execution import Execution
from conr.training.pretraining import pretrain
from conr.training.weights import ModelSpec

BATCH = 128


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    flags = parser(__doc__)
    flags.add_argument("--networks", nargs="*", choices=NETWORKS, default=["small", "digits"])
    flags.add_argument("--turns", type=int, default=5)
    flags.add_argument("--sizes", nargs="*", type=int, default=[32, 224], help="pixels of the images of the files")
    flags.add_argument("--bytes", type=int, default=2**30, help="of each file")
    flags.add_argument("--folder", type=Path, help="for the files, on the disk in question; they are deleted")
    given = flags.parse_args(arguments)
    print(head("network", "images", "images/s, wall", "images/s of processor time", "ratio, wall", "ratio, processor"))
    for network in given.networks:
        print_rates(network, given.turns)
    print()
    print(head("pixels", "order", "images/s, wall", "processor µs an image"))
    for size in given.sizes:
        print_reading(size, given.bytes, given.turns, given.folder)


def print_rates(network: str, turns: int) -> None:
    """Rows of a network."""
    case = NETWORKS[network]
    pixels = random_pixels(case.images, case.size)
    with TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", pixels)
        mapped = np.lib.format.open_memmap(Path(folder) / "images.npy", mode="c")
        cells = {
            "in memory": partial(rates, case, pixels, ahead=False),
            "memory-mapped": partial(rates, case, mapped, ahead=False),
            "read ahead": partial(rates, case, mapped, ahead=True),
        }
        found = {name: np.array(turns.results) for name, turns in in_turns(cells, turns, warm_up=1).items()}
    for name, measured in found.items():
        speed = (f"{rate:,.1f}" for rate in np.median(measured, axis=0))
        ratios = (f"{ratio:.3f}" for ratio in np.median(measured / found["in memory"], axis=0))
        print(line(network, name, *speed, *ratios), flush=True)


def rates(case: Case, images: NDArray[np.uint8], ahead: bool) -> tuple[float, float]:
    """Images per second of wall time and of processor time of pretraining."""
    asked = case.parameters()
    model = ModelSpec(**asked.network.layers, framework=asked.framework.name).build(asked.seed)
    with TemporaryDirectory() as folder, mock.patch.object(Compute, "streams", return_value=ahead):
        try:
            stage, checkpoint = PretrainStage.of(asked), Checkpoint(Path(folder))
            pretrain(model, images, None, stage, checkpoint, Stopwatch(case), Execution())
        except EnoughStepsError as enough:
            return enough.args
    raise AssertionError("too few steps")


def print_reading(size: int, total: int, turns: int, parent: Path | None) -> None:
    """Rows of a file."""
    count, random = total // (3 * size**2), np.random.default_rng(0)
    with TemporaryDirectory(dir=parent) as folder:
        path = Path(folder) / "images.npy"
        images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, size, size, 3))
        for first in range(0, count, 256):
            images[first : first + 256] = random.integers(0, 256, images[first : first + 256].shape, np.uint8)
        images.flush()
        cells = {name: partial(reading, path, whole) for name, whole in (("whole", total), ("shards", 0))}
        found = {name: np.median(turns.results, axis=0) for name, turns in in_turns(cells, turns).items()}
    for name, (speed, processor) in found.items():
        print(line(size, name, f"{speed:,.0f}", f"{processor * 1e6:.1f}"), flush=True)


def reading(path: Path, whole: int) -> tuple[float, float]:
    """Images per second, and processor seconds of an image, in an order of a file that is not in the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    images = torch.from_numpy(np.lib.format.open_memmap(path, mode="c"))
    with mock.patch.multiple(streaming, WHOLE=whole, SHARD=path.stat().st_size // 64, SHARDS=8):
        order = streaming.shuffled(images, torch.Generator().manual_seed(0))
    batches = torch.split(order[: len(order) // 4 // BATCH * BATCH], BATCH)
    wall, processor = time.perf_counter(), time.process_time()
    for _ in streaming.ReadAhead(images, BATCH, torch.device("cpu")).batches(batches):
        pass
    count = BATCH * len(batches)
    return count / (time.perf_counter() - wall), (time.process_time() - processor) / count


if __name__ == "__main__":
    main()
