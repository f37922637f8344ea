"""k-means: conr against scikit-learn and faiss at evaluation, and its share of an epoch between epochs.

    make bench-clustering                                          # under three minutes on two CPU cores
    python bench/clustering.py --embeddings FILE.npy --clusters 10 --n-init 40

Data: digits as pixels of unit length, and unit vectors near a space of 16 dimensions in clusters that overlap. All use
k-means++, the same number of initializations and at most 100 iterations, and end by their own default tolerance (faiss
by conr's); they take turns, the median counts. scikit-learn's time is that of the faster of its two algorithms. The
times of conr and faiss are those of spherical k-means, which conr's users get. scikit-learn has none: its inertia is
compared with that of conr's plain one.
"""

import statistics
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import faiss
import numpy as np
from common import Turns, head, in_turns, line, parser, run
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.preprocessing import normalize

from conr import Workspace, kmeans, load_preset
from conr.clustering.kmeans import TOLERANCE
from conr.training import objective

MAX_ITER = 100


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--embeddings", type=Path, help="(N, D) float32 unit vectors to measure instead")
    flags.add_argument("--clusters", type=int, default=10)
    flags.add_argument("--n-init", type=int, default=40)
    given = flags.parse_args()
    programs = ("scikit-learn, s", "faiss, s", "conr, s", "scikit-learn / conr", "faiss / conr")
    print(head("data", "K", "n_init", *programs, "inertia, conr / scikit-learn", "conr / faiss"))
    if given.embeddings:
        compare(given.embeddings.stem, np.load(given.embeddings), given.clusters, given.n_init, 1)
        return
    compare("digits, pixels", normalize(load_digits().data.astype(np.float32)), 10, 40, 5)
    compare("synthetic", synthetic(60_000, 10), 10, 20, 1)
    compare("synthetic", synthetic(60_000, 20), 20, 2, 1)
    compare("synthetic", synthetic(100_000, 200), 200, 1, 1)
    print(f"\n{between_epochs(epochs=5)}")


def synthetic(count: int, clusters: int, dimension: int = 256) -> np.ndarray:
    """(N, D) unit vectors near a space of 16 dimensions, in clusters that overlap."""
    random = np.random.default_rng(0)
    low = random.normal(size=(clusters, 16))[random.integers(0, clusters, count)]
    low += 0.7 * random.normal(size=low.shape)
    features = low @ random.normal(size=(16, dimension)) / 4 + 0.05 * random.normal(size=(count, dimension))
    return normalize(features).astype(np.float32)


def compare(name: str, features: np.ndarray, clusters: int, n_init: int, turns: int) -> None:
    """Print a row."""

    def sklearn(algorithm: str) -> float:
        model = KMeans(clusters, n_init=n_init, max_iter=MAX_ITER, algorithm=algorithm, random_state=0)
        return model.fit(features).inertia_

    def ours(spherical: bool = True) -> float:
        return kmeans(features, clusters, seed=0, n_init=n_init, max_iter=MAX_ITER, spherical=spherical).inertia

    def with_faiss() -> float:
        settings = {"niter": MAX_ITER, "nredo": n_init, "seed": 1, "spherical": True, "early_stop_threshold": TOLERANCE}
        settings |= {"min_points_per_centroid": 1, "max_points_per_centroid": len(features)}
        start = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
        run = faiss.Kmeans(features.shape[1], clusters, init_method=start, **settings)
        run.train(features)
        products, _ = run.index.search(features, 1)
        return float(2 * len(features) - 2 * products.sum(dtype=np.float64))

    ours()  # the first call of a process starts its threads
    calls = {algorithm: partial(sklearn, algorithm) for algorithm in ("lloyd", "elkan")}
    *theirs, reference, own = in_turns({**calls, "faiss": with_faiss, "conr": ours}, turns).values()
    best, inertia = min(found.seconds for found in theirs), min(found.results[-1] for found in theirs)
    times = [f"{seconds:.2f}" for seconds in (best, reference.seconds, own.seconds)]
    ratios = [f"{seconds / own.seconds:.1f}" for seconds in (best, reference.seconds)]
    quality = [f"{ours(spherical=False) / inertia:.5f}", f"{own.results[-1] / reference.results[-1]:.5f}"]
    shape = f"{name}, {len(features):,} × {features.shape[1]}"
    print(line(shape, clusters, n_init, *times, *ratios, *quality), flush=True)


def between_epochs(epochs: int) -> str:
    """Train the digits preset for some epochs of both stages; which share of one of the second k-means took."""
    changes = {"pretrain.epochs": epochs, "finetune.epochs": epochs, "prepare.labels": "none"}
    parameters = load_preset("digits").changed(changes)
    turns, kmeans_tensors = Turns(), objective.kmeans_tensors

    def timed(*arguments: object, **options: object) -> object:
        return turns.measure(partial(kmeans_tensors, *arguments, **options))

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(objective, "kmeans_tensors", timed):
        *_, logs = (run(stage, Workspace.at(Path(folder)), parameters) for stage in ("prepare", "pretrain", "finetune"))
    epoch, again = statistics.median(row["seconds"] for row in logs[parameters.seed]), statistics.median(turns.wall[1:])
    return (
        f"digits preset: an epoch {epoch:.2f} s, k-means after it {again * 1e3:.1f} ms = {again / epoch:.2%}; "
        f"the first one, {objective.FIRST_N_INIT} initializations, {turns.wall[0] * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
