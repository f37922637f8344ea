"""ConAff: conr against a plain re-implementation of the published procedure, in the batch and over a whole data set.

    make bench-neighbourhood      # about four minutes on two CPU cores

Each cell is a process of its own (its memory is the peak above what was there before), the median of repeats, one above
2,048. The plain procedure is what Eq. 3-7 say with dense matrices: the similarity of all pairs, a full sort, products
with the (B, B) adjacency matrix. "conr identical" counts the samples whose neighbours are the same, in the same order.

Over a whole data set, "the rest" is everything but the search for nearest neighbours, the median of three; "most
popular" is how often the most popular sample is among the k1 nearest of another one. The rows are of two kinds: around
ten centres with noise in all 256 directions, where some samples become neighbours of very many, and on a smooth
manifold of 12 dimensions, where they do not, as in the features of a trained network.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.preprocessing import normalize

from conr.neighbourhood import conaff, conaff_graph

K, K1, K2, DIMENSION, INTRINSIC = 10, 10, 2, 256, 12
BATCHES = (256, 512, 2048, 8192)
COUNTS = (10_000, 60_000)
SYNTHETIC = 500_000


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument(
        "--large",
        action="store_true",
        help=f"also {SYNTHETIC:,} rows of each kind, their neighbours from an approximate index (half an hour)",
    )
    arguments = parser.parse_args()
    if arguments.cell:
        name, count, *more = arguments.cell
        CELLS[name](int(count), *more)
        return
    print("| B | plain, ms | conr, ms | ratio | plain, MB | conr, MB | conr identical |\n|---|---|---|---|---|---|---|")
    for batch in BATCHES:
        plain, ours = cell("plain", batch), cell("conr", batch)
        times = f"{plain[0] * 1e3:,.1f} | {ours[0] * 1e3:,.1f} | {plain[0] / ours[0]:.1f}"
        memory = f"{plain[1]:,.0f} | {ours[1]:,.0f}"
        print(f"| {batch:,} | {times} | {memory} | {cell('same', batch)[0]:.2%} |", flush=True)
    print("\n| rows | N | most popular | search, s | whole, s | MB | the rest, µs an image | its MB |")
    print("|---|---|---|---|---|---|---|---|")
    counts = (*COUNTS, SYNTHETIC) if arguments.large else COUNTS
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            for count in counts:
                seconds, popular = cell("search", count, kind, folder)
                rest, rest_memory = cell("rest", count, folder)
                whole, memory = cell("graph", count, folder) if count < SYNTHETIC else (float("nan"), float("nan"))
                times = f"{seconds:.1f} | {whole:.1f} | {memory:,.0f} | {rest / count * 1e6:.0f} | {rest_memory:,.0f}"
                print(f"| {kind} | {count:,} | {popular:.0f} | {times} |", flush=True)


def cell(name: str, count: int, *more: str) -> list[float]:
    """Run one cell in a process of its own; returns what it printed."""
    command = [sys.executable, __file__, "--cell", name, str(count), *more]
    return [float(text) for text in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


def centres(count: int) -> np.ndarray:
    """Unit vectors around ten centres, with noise in all directions."""
    random = np.random.default_rng(0)
    middles = random.normal(size=(10, DIMENSION))
    return normalize(
        (middles[random.integers(0, 10, count)] + random.normal(scale=1.5, size=(count, DIMENSION))).astype(np.float32)
    )


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
    """Eq. 3-7 with dense matrices and full sorts, α = 2, L = 2, symmetrised and normalised as released."""
    similarity = features @ features.T
    ranking = similarity.argsort(dim=1, descending=True, stable=True)
    ranked = torch.zeros_like(similarity).scatter_(1, ranking[:, :K1], 1.0)
    nodes = (ranked + ranked.T) / 2
    edges = ranking[:, :K2]
    adjacency = torch.zeros_like(similarity).scatter_(1, edges, similarity.gather(1, edges) ** 2)
    for _ in range(2):
        nodes = F.normalize(adjacency @ (nodes + nodes.T), dim=1)
    return (nodes @ nodes.T).argsort(dim=1, descending=True, stable=True)[:, :K]


def timed(call: Callable[[], object], repeats: int) -> None:
    """Print the median seconds of a call, and the megabytes that it took beyond those that were there before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    print(statistics.median(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def repeats(count: int) -> int:
    """More of the short ones."""
    return 21 if count <= 512 else 5 if count <= 2048 else 1


def compare(count: int) -> None:
    """Print the share of samples with identical neighbours."""
    features = torch.from_numpy(centres(count))
    print((published(features) == conaff(features, K, K1, K2)).all(1).float().mean().item())


def search(count: int, kind: str, folder: str) -> None:
    """Time the search for nearest neighbours alone, exact but for the largest size; keep the rows and what it finds."""
    features = KINDS[kind](count)
    np.save(Path(folder) / "rows.npy", features)
    started = time.perf_counter()
    index = faiss.IndexFlatIP(DIMENSION)
    if count == SYNTHETIC:
        index = faiss.IndexIVFFlat(index, DIMENSION, 1024, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = 4
        index.train(features[:65_536])
    index.add(features)
    _, found = index.search(features, K1)
    seconds = time.perf_counter() - started
    np.save(Path(folder) / "neighbours.npy", found)
    print(seconds, np.bincount(found.ravel()).max() - 1)


def plain_cell(count: int) -> None:
    """Time the published procedure."""
    features = torch.from_numpy(centres(count))
    timed(lambda: published(features), repeats(count))


def conr_cell(count: int) -> None:
    """Time conr's ConAff of a batch."""
    features = torch.from_numpy(centres(count))
    timed(lambda: conaff(features, K, K1, K2), repeats(count))


def graph_cell(count: int, folder: str) -> None:
    """Time conr's ConAff of a whole data set."""
    timed(partial(conaff_graph, np.load(Path(folder) / "rows.npy"), K, K1, K2), 1)


def rest_cell(count: int, folder: str) -> None:
    """Time it with known neighbours."""
    rows, neighbours = np.load(Path(folder) / "rows.npy"), np.load(Path(folder) / "neighbours.npy")
    timed(partial(conaff_graph, rows, K, K1, K2, neighbours=neighbours), 1 if count == SYNTHETIC else 3)


KINDS: dict[str, Callable[[int], np.ndarray]] = {"centres": centres, "manifold": manifold}
CELLS: dict[str, Callable[..., None]] = {
    "plain": plain_cell,
    "conr": conr_cell,
    "same": compare,
    "graph": graph_cell,
    "rest": rest_cell,
    "search": search,
}

if __name__ == "__main__":
    main()
