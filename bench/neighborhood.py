"""ConAff: conr against a plain re-implementation of the published procedure, in the batch and over a whole data set.

    make bench-neighborhood      # about five minutes on two CPU cores

Each cell is a process of its own: its memory is the peak above what was there before, its time the median of the calls
of half a second, at least one, after a first call. The plain procedure is what Eq. 3-7 say with dense matrices: the
similarity of all pairs, a full sort, products with the (B, B) adjacency matrix. "Identical" counts the samples whose
neighbors are the same, in the same order.

Over a whole data set, "the rest" is everything but the search for nearest neighbors; "most popular" is how often the
most popular sample is among the k1 nearest of another one. The rows are of two kinds: around ten centers with noise in
all 256 directions, where some samples become neighbors of very many, and on a smooth manifold of 12 dimensions, where
they do not, as in the features of a trained network.
"""

import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from common import head, in_process, line, parser
from sklearn.preprocessing import normalize
from torch.utils.benchmark import Timer

from conr import ConAff, conaff, conaff_graph

K, SETTINGS, DIMENSION, INTRINSIC = 10, ConAff(k1=10, k2=2), 256, 12
contextual = partial(conaff, k=K, settings=SETTINGS)
LARGE = 500_000


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--batches", type=int, nargs="+", default=[256, 512, 2048, 8192])
    flags.add_argument("--counts", type=int, nargs="+", default=[10_000, 60_000])
    large = f"also {LARGE:,} rows of each kind, their neighbors from an approximate index (half an hour)"
    flags.add_argument("--large", action="store_true", help=large)
    given = flags.parse_args()
    print(head("B", "plain, ms", "conr, ms", "ratio", "plain, MB", "conr, MB", "identical"))
    for batch in given.batches:
        (plain, plain_memory), (ours, memory) = (in_process(batch_cell, batch, way) for way in (published, contextual))
        times = f"{plain * 1e3:,.1f}", f"{ours * 1e3:,.1f}", f"{plain / ours:.1f}"
        same = f"{in_process(identical, batch):.2%}"
        print(line(f"{batch:,}", *times, f"{plain_memory:,.0f}", f"{memory:,.0f}", same), flush=True)
    heads = ("most popular", "search, s", "whole, s", "MB", "the rest, µs per image", "its MB")
    print("\n" + head("rows", "N", *heads))
    with tempfile.TemporaryDirectory() as folder:
        for kind in (centers, manifold):
            for count in (*given.counts, *([LARGE] if given.large else [])):
                seconds, popular = in_process(search_cell, kind, count, folder)
                rest, rest_memory = in_process(graph_cell, folder, True)
                whole, memory = in_process(graph_cell, folder, False) if count < LARGE else (float("nan"),) * 2
                cells = f"{seconds:.1f}", f"{whole:.1f}", f"{memory:,.0f}", f"{rest / count * 1e6:.0f}"
                print(line(kind.__name__, f"{count:,}", popular, *cells, f"{rest_memory:,.0f}"), flush=True)


def centers(count: int) -> np.ndarray:
    """Unit vectors around ten centers, with noise in all directions."""
    random = np.random.default_rng(0)
    middles = random.normal(size=(10, DIMENSION))
    rows = middles[random.integers(0, 10, count)] + random.normal(scale=1.5, size=(count, DIMENSION))
    return normalize(rows.astype(np.float32))


def manifold(count: int) -> np.ndarray:
    """Unit vectors on a smooth manifold, in ten groups, with a little noise in all directions."""
    random = np.random.default_rng(0)
    middles = random.normal(size=(10, INTRINSIC))
    directions = random.normal(scale=INTRINSIC**-0.5, size=(INTRINSIC, DIMENSION))
    phases = random.uniform(0, 2 * np.pi, DIMENSION)
    position = middles[random.integers(0, 10, count)] + random.normal(scale=0.5, size=(count, INTRINSIC))
    noise = random.normal(scale=0.01, size=(count, DIMENSION))
    return normalize((np.cos(position @ directions + phases) + noise).astype(np.float32))


def published(features: torch.Tensor) -> torch.Tensor:
    """Eq. 3-7 with dense matrices and full sorts, α = 2, L = 2, symmetrized and normalized as released."""
    similarity = features @ features.T
    ranking = similarity.argsort(dim=1, descending=True, stable=True)
    ranked = torch.zeros_like(similarity).scatter_(1, ranking[:, : SETTINGS.k1], 1.0)
    nodes = (ranked + ranked.T) / 2
    edges = ranking[:, : SETTINGS.k2]
    adjacency = torch.zeros_like(similarity).scatter_(1, edges, similarity.gather(1, edges) ** 2)
    for _ in range(2):
        nodes = F.normalize(adjacency @ (nodes + nodes.T), dim=1)
    return (nodes @ nodes.T).argsort(dim=1, descending=True, stable=True)[:, :K]


def identical(count: int) -> float:
    """The share of samples with identical neighbors."""
    features = torch.from_numpy(centers(count))
    return float((published(features) == contextual(features)).all(1).float().mean())


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """The median seconds of a call, and the megabytes that it took beyond those that were there before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    seconds = timer.blocked_autorange(min_run_time=0.5).median
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def batch_cell(count: int, way: Callable[[torch.Tensor], torch.Tensor]) -> tuple[float, float]:
    """Time ConAff of a batch."""
    features = torch.from_numpy(centers(count))
    return timed(lambda: way(features))


def search_cell(kind: Callable[[int], np.ndarray], count: int, folder: str) -> tuple[float, int]:
    """Time only the search for nearest neighbors, exact except at the largest size; keep rows and neighbors."""
    features = kind(count)
    np.save(Path(folder) / "rows.npy", features)
    started = time.perf_counter()
    index = faiss.IndexFlatIP(DIMENSION)
    if count == LARGE:
        index = faiss.IndexIVFFlat(index, DIMENSION, 1024, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = 4
        index.train(features[:65_536])
    index.add(features)
    _, found = index.search(features, SETTINGS.k1)
    seconds = time.perf_counter() - started
    np.save(Path(folder) / "neighbors.npy", found)
    return seconds, int(np.bincount(found.ravel()).max()) - 1


def graph_cell(folder: str, known: bool) -> tuple[float, float]:
    """Time conr's ConAff of a whole data set, with known neighbors or with the search for them."""
    rows = np.load(Path(folder) / "rows.npy")
    neighbors = np.load(Path(folder) / "neighbors.npy") if known else None
    return timed(lambda: conaff_graph(rows, K, SETTINGS, neighbors=neighbors))


if __name__ == "__main__":
    main()
