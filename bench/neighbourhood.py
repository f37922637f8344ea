"""ConAff: conr against a plain re-implementation of the published procedure, in the batch and over a whole data set.

    make bench-neighbourhood      # about three minutes on two CPU cores

Each cell is a process of its own (its memory is the peak above what was there before), the median of repeats, one above
2,048. The plain procedure is what Eq. 3-7 say with dense matrices: the similarity of all pairs, a full sort, products
with the (B, B) adjacency matrix. "conr identical" counts the samples whose neighbours are the same, in the same order.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch
import torch.nn.functional as F

from conr.neighbourhood import conaff, conaff_graph

K, K1, K2, DIMENSION = 10, 10, 2, 256
BATCHES = (256, 512, 2048, 8192)
COUNTS = (10_000, 60_000)
SYNTHETIC = 500_000


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--large", action="store_true", help=f"also {SYNTHETIC:,} synthetic rows (half an hour)")
    arguments = parser.parse_args()
    if arguments.cell:
        name, count = arguments.cell
        CELLS[name](int(count))
        return
    print("| B | plain, ms | conr, ms | ratio | plain, MB | conr, MB | conr identical |\n|---|---|---|---|---|---|---|")
    for batch in BATCHES:
        plain, ours = cell("plain", batch), cell("conr", batch)
        times = f"{plain[0] * 1e3:,.1f} | {ours[0] * 1e3:,.1f} | {plain[0] / ours[0]:.1f}"
        memory = f"{plain[1]:,.0f} | {ours[1]:,.0f}"
        print(f"| {batch:,} | {times} | {memory} | {cell('same', batch)[0]:.2%} |", flush=True)
    print("\n| N | whole, s | k-NN search alone, s | the rest, µs an image | MB |\n|---|---|---|---|---|")
    for count in (*COUNTS, *((SYNTHETIC,) if arguments.large else ())):
        (whole, memory), (search, _) = cell("graph", count), cell("search", count)
        print(
            f"| {count:,} | {whole:.1f} | {search:.1f} | {(whole - search) / count * 1e6:.0f} | {memory:,.0f} |",
            flush=True,
        )


def cell(name: str, count: int) -> list[float]:
    """Run one cell in a process of its own; returns what it printed."""
    command = [sys.executable, __file__, "--cell", name, str(count)]
    return [float(text) for text in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


def samples(count: int) -> np.ndarray:
    """Unit vectors around ten centres, as a trained network gives."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(10, DIMENSION))
    noisy = centres[random.integers(0, 10, count)] + random.normal(scale=1.5, size=(count, DIMENSION))
    return (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)


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
    features = torch.from_numpy(samples(count))
    print((published(features) == conaff(features, K, K1, K2)).all(1).float().mean().item())


def search(count: int) -> None:
    """Time the k-nearest-neighbour search alone."""
    features = samples(count)
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(features)
    timed(lambda: index.search(features, K1), 1)


def plain_cell(count: int) -> None:
    """Time the published procedure."""
    features = torch.from_numpy(samples(count))
    timed(lambda: published(features), repeats(count))


def conr_cell(count: int) -> None:
    """Time conr's ConAff of a batch."""
    features = torch.from_numpy(samples(count))
    timed(lambda: conaff(features, K, K1, K2), repeats(count))


def graph_cell(count: int) -> None:
    """Time conr's ConAff of a whole data set."""
    features = samples(count)
    timed(lambda: conaff_graph(features, K, K1, K2), 1)


CELLS: dict[str, Callable[[int], None]] = {
    "plain": plain_cell,
    "conr": conr_cell,
    "same": compare,
    "graph": graph_cell,
    "search": search,
}

if __name__ == "__main__":
    main()
