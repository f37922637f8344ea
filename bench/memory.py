"""How the memory of each stage grows with the number of images.

    make bench-memory      # about ten minutes on two quiet CPU cores

All stages run on two numbers of small JPEG files, with a small network and an epoch of each training, each stage in a
process of its own: the peak of its private memory, sampled every 5 milliseconds, and the bytes that it grows by an
image. Pages of memory-mapped files do not count: the system takes them back when it needs them. Of `prepare` it is the
main process. Nothing heavy is imported here, because the processes import this file again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

from common import head, in_process, line, parser, run
from prepare import make

from conr import Parameters, Workspace, load_preset
from conr.parameters import STAGES

INTERVAL = 0.005  # seconds between two looks at the memory
SMALL = {
    "device": "cpu",
    "clusters": 10,
    "network.width": 8,
    "network.stem": "imagenet",
    "prepare.source": "folder",
    "prepare.labels": "none",
    "prepare.image_size": 32,
    "pretrain.epochs": 1,
    "finetune.epochs": 1,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each stage."""
    flags = parser(__doc__)
    flags.add_argument("--sizes", nargs=2, type=int, default=[5_000, 50_000], help="numbers of images")
    flags.add_argument("--shard-size", type=int, default=0, help="of the store, in megabytes; 0 for one file")
    given = flags.parse_args(arguments)
    small = {**SMALL, "prepare.shard_size": given.shard_size}
    peaks: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for size in given.sizes:
        with TemporaryDirectory() as name:
            folder, workspace = Path(name) / "images", Workspace.at(Path(name) / "run")
            in_process(make, folder, "32-px files", size)
            parameters = load_preset("digits").changed({**small, "prepare.path": str(folder)})
            for stage in STAGES:
                peaks[stage].append(in_process(peak, stage, workspace, parameters))
    few, many = given.sizes
    print(head("stage", f"MB, {few:,} images", f"MB, {many:,} images", "bytes an image"))
    for stage, (first, second) in peaks.items():
        slope = (second - first) / (many - few)
        print(line(stage, f"{first / 1e6:,.0f}", f"{second / 1e6:,.0f}", f"{slope:,.0f}"), flush=True)


def peak(stage: str, workspace: Workspace, parameters: Parameters) -> float:
    """The peak of a stage's private memory in bytes, in this process."""
    looks: list[int] = []
    with sampled(looks):
        run(stage, workspace, parameters)
    return max(looks)


@contextmanager
def sampled(looks: list[int]) -> Iterator[None]:
    """Add the private memory of this process to a list, again and again."""
    ended = Event()

    def look() -> None:
        while not ended.wait(INTERVAL):
            status = Path("/proc/self/status").read_text()
            looks.append(1024 * int(status.partition("RssAnon:")[2].split()[0]))

    thread = Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main()
