"""Clusters of more vectors than memory need hold: time and memory of a vector, by k-means and by the graph.

    make bench-scale                                                # about ten minutes on two quiet CPU cores
    python bench/scale.py --sizes 1000000 --folder /big/disk        # 0.5 GB of files for a million vectors

Vectors are synthetic: 128 dimensions, unit length, in 100 groups that overlap, near a space of 16 dimensions. They are
written to .npy files of 250,000 first. Each cell is a process of its own; its peak memory is that above what it took
before it read a vector.
"""

import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from common import head, in_process, line, parser

from conr import Observer
from conr.clustering.large import graph_clusters_large, kmeans_large
from conr.evaluation.agreement import Agreement
from conr.files import save_array
from conr.vectors import Vectors

DIMENSION, GROUPS, SHARD = 128, 100, 250_000
METHODS = {"k-means": kmeans_large, "graph": graph_clusters_large}


class Stopwatch(Observer):
    """Processor seconds of each task."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[None]:
        started = time.process_time()
        yield
        self.seconds[name] = time.process_time() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    flags = parser(__doc__)
    flags.add_argument("--sizes", type=int, nargs="*", default=[1_000_000, 5_000_000], help="numbers of vectors")
    flags.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    flags.add_argument("--folder", type=Path, help="for the vectors; they are deleted")
    given = flags.parse_args(arguments)
    columns = "to begin with, processor s", "a vector, processor µs", "in all, wall s", "peak, MB", "ACC"
    print(head("method", "N", *columns), flush=True)
    for size in given.sizes:
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            in_process(write_vectors, Path(name), size)
            for method in given.methods:
                print(line(method, f"{size:,}", *in_process(cells, Path(name), method)), flush=True)


def write_vectors(folder: Path, size: int) -> None:
    """Write the vectors and their groups."""
    random = np.random.default_rng(0)
    centers, space = random.normal(size=(GROUPS, 16)), random.normal(size=(16, DIMENSION)) / 4
    groups = random.integers(0, GROUPS, size)
    (folder / "vectors").mkdir()
    for number, first in enumerate(range(0, size, SHARD)):
        own = groups[first : first + SHARD]
        low = centers[own] + 0.5 * random.normal(size=(len(own), 16))
        rows = low @ space + 0.05 * random.normal(size=(len(own), DIMENSION))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        save_array(folder / "vectors" / f"{number:05d}.npy", rows.astype(np.float32))
    save_array(folder / "groups.npy", groups)


def peak() -> float:
    """The megabytes that this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cells(folder: Path, method: str) -> tuple[str, ...]:
    """Cells of a method."""
    vectors, stopwatch, before = Vectors.opened([folder / "vectors"]), Stopwatch(), peak()
    started, processor = time.perf_counter(), time.process_time()
    METHODS[method](vectors, GROUPS, folder / "clusters.npy", seed=0, observer=stopwatch)
    wall, processor, taken = time.perf_counter() - started, time.process_time() - processor, peak() - before
    assigning = stopwatch.seconds["assign"]
    accuracy = Agreement(np.load(folder / "groups.npy"), np.load(folder / "clusters.npy").astype(np.int64)).accuracy
    times = f"{processor - assigning:.1f}", f"{assigning / len(vectors) * 1e6:.1f}", f"{wall:.0f}"
    return *times, f"{taken:,.0f}", f"{accuracy:.3f}"


if __name__ == "__main__":
    main()
