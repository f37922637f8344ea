"""prepare: conr against torchvision's ImageFolder, on 32-px JPEG files and on photo-sized ones.

    make bench-prepare      # about five minutes on two CPU cores

Both read two folders of files made from scikit-learn's two sample photographs: cut-outs, and enlarged with noise. What
ImageFolder with Resize and CenterCrop gives is put into an array, in a plain loop and through a DataLoader with two
workers; conr, with two processes, also writes, hashes and sums up. Times hold the listing of the files and the start
of processes, not imports. Each cell is a process of its own; medians of repeats in turns. Memory is the peak of the
main process, and of the largest of those that it started. PyTorch and scikit-learn are imported where they are used,
because conr's processes import this file again; the command conr has nothing heavy in its main module either.
"""

import resource
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from common import Turns, head, in_process, in_turns, line, parser, run
from PIL import Image

from conr import Parameters, Workspace
from conr.data import reading

PROCESSES = 2
PHOTOS = ((1600, 1200), (1536, 2048), (3000, 2000), (3000, 4000))
KINDS = {"32-px files": (50_000, 32), "photos": (256, 224)}  # how many, size in the store


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--share", type=float, default=1.0, help="of the files, to try the benchmark itself")
    share = flags.parse_args().share
    for kind, (whole_count, size) in KINDS.items():
        count = int(whole_count * share)
        with tempfile.TemporaryDirectory() as temporary:
            quarter, whole = Path(temporary, "quarter"), Path(temporary, "whole")
            for folder, images in ((quarter, count // 4), (whole, count)):
                # Elsewhere: a process counts what the one that starts it held as its own peak.
                in_process(make, folder, kind, images)
            calls = {name: partial(in_process, measured, way, whole, size) for name, way in WAYS.items()}
            found = in_turns(calls, turns=3)
            small = in_process(measured, conr, quarter, size)
        print(f"\n{count:,} {kind}; conr with a quarter of them: {small[2]:.0f} + {small[3]:.0f} MB")
        print(head("", "images/s", "conr is faster by", "CPU, ms per image", "MB: main + largest other"))
        middle = {name: np.median(turns.results, axis=0) for name, turns in found.items()}
        for name, (seconds, processor, memory, other) in middle.items():
            speed = f"{count / seconds:,.0f}", f"{seconds / middle['conr'][0]:.1f}", f"{processor / count * 1e3:.3f}"
            print(line(name, *speed, f"{memory:.0f} + {other:.0f}"), flush=True)


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


def measured(way: Callable[[Path, int], None], folder: Path, size: int) -> list[float]:
    """Seconds on the clock and of all processes; peak megabytes of this process, and of the largest that it started."""
    if way is not conr:
        import torchvision  # noqa: F401 (not timed)

    turns = Turns()
    turns.measure(partial(way, folder, size))
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return [*turns.wall, *turns.processor, *peaks]


def image_folder(folder: Path, size: int, workers: int) -> None:
    """What torchvision reads, as uint8, in one array: image by image, or through a DataLoader with workers."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

    images = ImageFolder(folder, Compose([Resize(size), CenterCrop(size), PILToTensor()]))
    batches = DataLoader(images, 256 if size == 32 else 8, num_workers=workers) if workers else images
    array, first = np.empty((len(images), 3, size, size), dtype=np.uint8), 0
    for pixels, _ in batches:
        count = len(pixels) if workers else 1
        array[first : first + count] = pixels.numpy()
        first += count


def conr(folder: Path, size: int) -> None:
    """A whole store."""
    reading.PROCESSES = PROCESSES
    changes = {"prepare.path": str(folder), "prepare.labels": "folder", "prepare.image_size": size}
    run("prepare", Workspace.at(folder.parent), Parameters().changed(changes))


WAYS = {"loop": partial(image_folder, workers=0), "loader": partial(image_folder, workers=PROCESSES), "conr": conr}

if __name__ == "__main__":
    main()
