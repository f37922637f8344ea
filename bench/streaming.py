"""Images that do not fit into memory: what streaming them costs a training.

    make bench-streaming      # about three minutes on two quiet CPU cores

Pretraining on images in memory, memory-mapped, memory-mapped and read ahead as where they take more than half of the
memory, and in shards: images per second of wall time and of processor time, medians of the steps. The trainings make
a step each in turns, in one process: a change of the machine's load meets all of them, which it does not where they run
for seconds one after the other. The ratio to images in memory is the median of those of the rounds. The files are in
the page cache, so that this is the cost of the way, not of the disk.

Then files of a gigabyte that are not in the page cache, read in batches of 128 images by the reader alone: in an order
that is shuffled as a whole, and by shards and within groups of shards, which are smaller here, as the files are.
Batches of a quarter of the file, in turns, medians.
"""

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import torch
from common import head, in_turns, line, parser
from training_step import NETWORKS, Case, random_pixels

from conr.data.images import INDEX, ImageSource, open_images, write_index
from conr.data.writing import ImageWriter
from conr.observer import SILENT
from conr.parameters import PretrainStage
from conr.training import streaming
from conr.training.compute import Compute
from conr.training.execution import Execution
from conr.training.objective import Context
from conr.training.pretraining import Pretraining
from conr.training.recipe import Recipe
from conr.training.step import TrainingStep
from conr.training.weights import ModelSpec

BATCH = 128  # of reading the files
SHARDS = 16


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    flags = parser(__doc__)
    flags.add_argument("--networks", nargs="*", choices=NETWORKS, default=["small", "digits"])
    flags.add_argument("--turns", type=int, default=5, help="of reading the files")
    flags.add_argument("--steps", type=int, default=100, help="of each training")
    flags.add_argument("--sizes", nargs="*", type=int, default=[32, 224], help="pixels of the images of the files")
    flags.add_argument("--bytes", type=int, default=2**30, help="of each file")
    flags.add_argument("--folder", type=Path, help="for the files, on the disk in question; they are deleted")
    given = flags.parse_args(arguments)
    print(head("network", "images", "images/s, wall", "images/s of processor time", "ratio, wall", "ratio, processor"))
    for network in given.networks:
        print_rates(network, given.steps)
    print()
    print(head("pixels", "order", "images/s, wall", "processor µs an image"))
    for size in given.sizes:
        print_reading(size, given.bytes, given.turns, given.folder)


def print_rates(network: str, steps: int) -> None:
    """Rows of a network."""
    case = NETWORKS[network]
    pixels = random_pixels(case.images, case.size)
    with TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "images.npy", pixels)
        mapped = np.lib.format.open_memmap(folder / "images.npy", mode="c")
        with ImageWriter(folder, case.size, -(-case.images // SHARDS)) as writer:
            writer.append(pixels)
            write_index(folder / INDEX, writer.finish())
        ways = {
            "in memory": training(case, pixels, ahead=False),
            "memory-mapped": training(case, mapped, ahead=False),
            "mapped, read ahead": training(case, mapped, ahead=True),
            f"{SHARDS} shards, read ahead": training(case, open_images(folder / INDEX, case.size, ""), ahead=True),
        }
        found = in_turns({name: partial(next, way) for name, way in ways.items()}, steps, warm_up=case.skipped)
    first = found["in memory"]
    for name, turns in found.items():
        speed = (f"{case.batch / np.median(seconds):,.1f}" for seconds in (turns.wall, turns.processor))
        pairs = (first.wall, turns.wall), (first.processor, turns.processor)
        ratios = (f"{np.median(np.divide(*pair)):.3f}" for pair in pairs)
        print(line(network, name, *speed, *ratios), flush=True)


def training(case: Case, images: ImageSource, ahead: bool) -> Iterator[None]:
    """Pretraining, a step at a time."""
    asked = case.parameters()
    parameters, settings = PretrainStage.of(asked), asked.pretrain
    model = ModelSpec(**asked.network.layers, framework=asked.framework.name).build(asked.seed)
    recipe = Recipe("pretrain", asked.seed, settings, asked.optimizer, asked.views, noise_std=settings.noise_std)
    context = Context.on_device(model, images, None, parameters, SILENT)
    with mock.patch.object(Compute, "streams", return_value=ahead):
        step = TrainingStep(Pretraining(context, parameters), recipe, Execution())
    for epoch in itertools.count():
        step.objective.start_epoch(epoch)
        step.start_epoch(epoch)
        order = streaming.shuffled(context.images, step.generators[0])
        batches = order[: len(order) // case.batch * case.batch].view(-1, case.batch)
        for number, (indices, pixels) in enumerate(step.with_pixels(batches)):
            step.set(indices, pixels, epoch + number / len(batches))
            step()
            yield


def print_reading(size: int, total: int, turns: int, parent: Path | None) -> None:
    """Rows of a file."""
    count, random = total // (3 * size**2), np.random.default_rng(0)
    with TemporaryDirectory(dir=parent) as folder:
        path = Path(folder) / "images.npy"
        images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, size, size, 3))
        for first in range(0, count, 256):
            images[first : first + 256] = random.integers(0, 256, images[first : first + 256].shape, np.uint8)
        images.flush()
        del images  # pages that are mapped stay in the cache
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
