"""prepare: conr against torchvision's ImageFolder, on 32-px JPEG files and on photo-sized ones.

    make bench-prepare      # about five minutes on two CPU cores

Both read two folders of files made from scikit-learn's two sample photographs: cut-outs, and enlarged with noise. What
ImageFolder with Resize and CenterCrop gives is put into an array, in a plain loop and through a DataLoader with two
workers; conr, with two processes, also writes, hashes and sums up. Times hold the listing of the files and the start
of processes, not imports. Each cell is a process of its own; medians of repeats that alternate. Memory is the peak of
the main process, and of the largest of those that it started. PyTorch and scikit-learn are imported where they are
used, because conr's processes import this file again; the command conr has nothing heavy in its main module either.
"""

import argparse
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from conr.data import reading
from conr.data.pack import pack
from conr.data.sources import open_source
from conr.parameters import Prepare

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

REPEATS = 3
PROCESSES = 2
PHOTOS = ((1600, 1200), (1536, 2048), (3000, 2000), (3000, 4000))
KINDS = {"32-px files": (50_000, 32), "photos": (256, 224)}  # how many, size in the store


def main() -> None:
    """Make the files, then print a row for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        name, folder, size = arguments.cell
        CELLS[name](Path(folder), int(size))
        return
    for kind, (count, size) in KINDS.items():
        with tempfile.TemporaryDirectory() as temporary:
            quarter, whole = Path(temporary, "quarter"), Path(temporary, "whole")
            for folder, images in ((quarter, count // 4), (whole, count)):
                # Elsewhere: a process counts what the one that starts it held as its own peak.
                making = multiprocessing.get_context("spawn").Process(target=make, args=(folder, kind, images))
                making.start()
                making.join()
            runs = {name: [] for name in CELLS}
            for _ in range(REPEATS):
                for name, found in runs.items():
                    found.append(cell(name, whole, size))
            small = cell("conr", quarter, size)
        print(f"\n{count:,} {kind}; conr with a quarter of them: {small[2]:.0f} + {small[3]:.0f} MB")
        print("| | images/s | conr is faster by | CPU, ms an image | MB: main + largest other |\n|---|---|---|---|---|")
        seconds = {name: statistics.median(run[0] for run in found) for name, found in runs.items()}
        for name, found in runs.items():
            processor, main, other = (statistics.median(run[index] for run in found) for index in (1, 2, 3))
            speed = f"{count / seconds[name]:,.0f} | {seconds[name] / seconds['conr']:.1f}"
            print(f"| {name} | {speed} | {processor / count * 1e3:.3f} | {main:.0f} + {other:.0f} |", flush=True)


def make(folder: Path, kind: str, count: int) -> None:
    """Write seeded JPEG files, in ten classes."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    samples = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        sample = samples[number % len(samples)]
        if kind == "photos":
            width, height = PHOTOS[number % len(PHOTOS)]
            enlarged = np.asarray(sample.resize((width, height)), dtype=np.int16)
            noisy = enlarged + random.integers(-8, 9, (height, width, 1), dtype=np.int16)
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        else:
            left, top = (int(random.integers(0, side - 32)) for side in sample.size)
            image = sample.crop((left, top, left + 32, top + 32))
        path = folder / str(number % 10) / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=85)


def cell(name: str, folder: Path, size: int) -> list[float]:
    """Run one cell in a process of its own; returns what it printed."""
    command = [sys.executable, __file__, "--cell", name, str(folder), str(size)]
    return [
        float(text) for text in subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    ]


def timed(call: Callable[[], object]) -> None:
    """Print the seconds that a call takes, those of the processor, and the peak megabytes of this process and others.

    The processor's seconds are those of all processes; the other megabytes those of the largest that the call started.
    """
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    before, started = [resource.getrusage(who) for who in whose], time.perf_counter()
    call()
    seconds, after = time.perf_counter() - started, [resource.getrusage(who) for who in whose]
    processor = sum(use.ru_utime + use.ru_stime for use in after) - sum(use.ru_utime + use.ru_stime for use in before)
    print(seconds, processor, *(use.ru_maxrss / 1024 for use in after))


def images_of(folder: Path, size: int) -> "ImageFolder":
    """The folder as torchvision reads it, as uint8."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

    return ImageFolder(folder, Compose([Resize(size), CenterCrop(size), PILToTensor()]))


def loop(folder: Path, size: int) -> None:
    """ImageFolder, image by image."""
    import torchvision  # noqa: F401 (not timed)

    def read() -> None:
        images = images_of(folder, size)
        packed = np.empty((len(images), 3, size, size), dtype=np.uint8)
        for number, (image, _) in enumerate(images):
            packed[number] = image.numpy()

    timed(read)


def loader(folder: Path, size: int) -> None:
    """ImageFolder through a DataLoader."""
    import torchvision  # noqa: F401 (not timed)
    from torch.utils.data import DataLoader

    def read() -> None:
        images = images_of(folder, size)
        packed = np.empty((len(images), 3, size, size), dtype=np.uint8)
        first = 0
        for batch, _ in DataLoader(images, batch_size=256 if size == 32 else 8, num_workers=PROCESSES):
            packed[first : first + len(batch)] = batch.numpy()
            first += len(batch)

    timed(read)


def conr(folder: Path, size: int) -> None:
    """A whole store."""
    reading.PROCESSES = PROCESSES
    settings = Prepare(path=str(folder), labels="folder", image_size=size)
    timed(lambda: pack(open_source(settings), settings, folder.with_name("store")))


CELLS: dict[str, Callable[[Path, int], None]] = {"loop": loop, "loader": loader, "conr": conr}

if __name__ == "__main__":
    main()
