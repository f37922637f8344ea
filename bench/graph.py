"""Clusters of the ConAff graph: time and memory by the number of samples, the index, and the entries of a row.

    make bench-graph
    make bench-graph ARGS='--sizes 200000 500000'
    python bench/graph.py --features FILE.npy --labels FILE.npy  # instead of digits' pixels

Each cell is a process of its own. Synthetic features are unit vectors of 128 dimensions near a space of 16 dimensions,
in ten groups that overlap. Memory is the peak of the process, with libraries and features, and, in bytes, what the
clustering took on top of these. The index is compared with the search among all samples, for the first 4,096.

Entries are compared on real features. Neighbors and the clusters of k-means are known there: what counts is nodes,
eigenvectors and the k-means of their rows.
"""

import resource
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from clustering import synthetic
from common import Turns, head, in_process, line, parser
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.preprocessing import normalize

from conr import kmeans, label_scores
from conr.clustering import graph_clusters
from conr.clustering.graph import APPROXIMATE_FROM, STARTS
from conr.neighbors.lists import QUERIES, Lists
from conr.neighbors.search import exact_neighbors

DIMENSION, CLUSTERS, K1, BLOCK = 128, 10, 10, 4096
ENTRIES = {"16": 16, "32": 32, "64": 64, "all": None}  # of a row of nodes


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    flags = parser(__doc__)
    flags.add_argument("--sizes", type=int, nargs="*", default=[10_000, 60_000], help="numbers of synthetic samples")
    flags.add_argument("--features", type=Path, help="(N, D) float32 unit vectors to compare entries on")
    flags.add_argument("--labels", type=Path, help="(N,) their classes")
    flags.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="to compare entries with")
    given = flags.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features.npy"
        print(head("N", "neighbors", "wall, s", "processor, s", "samples a second", "peak, MB", "bytes a sample"))
        searches = [head("N", "all samples, µs a sample", "index, µs a sample", "making it, µs a sample", "its recall")]
        for size in given.sizes:
            in_process(keep_synthetic, file, size)
            print(line(f"{size:,}", *in_process(size_cells, file)), flush=True)
            searches.append(line(f"{size:,}", *in_process(search_cells, file)))
        print("", *searches, "", sep="\n", flush=True)
        if given.features:
            features, labels = np.load(given.features), np.load(given.labels)
        else:
            digits = load_digits()
            features, labels = normalize(digits.data).astype(np.float32), digits.target
        known = Path(folder) / "known.npz"
        keep_known(known, features, labels, given.seeds)
        print(head("entries", "ACC", "NMI", "processor, s", "MB"))
        for name in ENTRIES:
            print(line(name, *in_process(entries_cells, known, name)), flush=True)


def keep_synthetic(file: Path, size: int) -> None:
    """Write synthetic features to a file: what makes them shall not count in the memory of a cell."""
    np.save(file, synthetic(size, CLUSTERS, DIMENSION))


def keep_known(file: Path, features: NDArray[np.float32], labels: NDArray[np.int64], seeds: Sequence[int]) -> None:
    """Write features, labels, neighbors, and the clusters of k-means with each seed."""
    clusters = len(set(labels.tolist()))
    neighbors = np.concatenate(list(exact_neighbors(features, K1, BLOCK)))
    starts = [kmeans(features, clusters, seed=seed, n_init=STARTS).assignments for seed in seeds]
    np.savez(file, features=features, labels=labels, neighbors=neighbors, seeds=seeds, starts=starts)


def peak() -> float:
    """The megabytes that this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def size_cells(file: Path) -> tuple[str, ...]:
    """Cells: the time and memory of the clustering of a file of features."""
    features = np.load(file)
    size, before, turns = len(features), peak(), Turns()
    turns.measure(lambda: graph_clusters(features, CLUSTERS))
    search = "index" if size > APPROXIMATE_FROM else "all samples"
    times = f"{turns.seconds:.1f}", f"{turns.processor[0]:.1f}", f"{size / turns.seconds:,.0f}"
    return search, *times, f"{peak():,.0f}", f"{(peak() - before) * 2**20 / size:,.0f}"


def search_cells(file: Path) -> tuple[str, ...]:
    """Cells: the processor time of both searches, of a block of each, and the recall of the index."""
    features, turns = np.load(file), Turns()
    expected = turns.measure(partial(next, exact_neighbors(features, K1, BLOCK)))
    lists = turns.measure(partial(Lists, features))
    _, found = turns.measure(partial(lists.search, features[:QUERIES], K1))
    exact, making, index = turns.processor
    recall = np.mean([len(set(own) & set(others)) / K1 for own, others in zip(expected, found, strict=False)])
    times = exact / len(expected) * 1e6, index / len(found) * 1e6, making / len(features) * 1e6
    return *(f"{time:,.0f}" for time in times), f"{recall:.1%}"


def entries_cells(file: Path, name: str) -> tuple[str, ...]:
    """Cells: mean scores, and the processor time and memory of what follows neighbors and k-means."""
    with np.load(file) as stored:
        known: dict[str, Any] = dict(stored)
    labels, before, turns, scores = known["labels"], peak(), Turns(), []
    with mock.patch("conr.clustering.graph.ENTRIES", ENTRIES[name]):
        for seed, start in zip(known["seeds"].tolist(), known["starts"], strict=True):
            options = {"seed": seed, "neighbors": known["neighbors"], "start": start}
            found = turns.measure(partial(graph_clusters, known["features"], len(set(labels.tolist())), **options))
            scores.append(label_scores(labels, found.assignments))
    means = [f"{np.mean([score[key] for score in scores]):.3f}" for key in ("acc", "nmi")]
    return *means, f"{np.mean(turns.processor):.1f}", f"{peak() - before:,.0f}"


if __name__ == "__main__":
    main()
