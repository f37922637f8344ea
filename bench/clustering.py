"""k-means: conr against scikit-learn and faiss at evaluation, and its share of an epoch between epochs.

    make bench-clustering                                          # under three minutes on two CPU cores
    python bench/clustering.py --embeddings FILE.npy --clusters 10 --restarts 40

Data: digits as pixels of unit length, and unit vectors near a space of 16 dimensions in clusters that overlap. All use
k-means++, the same number of restarts and at most 100 iterations, and end by their own default tolerance (faiss by
conr's). scikit-learn's time is that of the faster of its two algorithms. The times of conr and faiss are those of
spherical k-means, which conr's users get. scikit-learn has none: its inertia is compared with that of conr's plain one.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import yaml
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from conr.clustering import kmeans
from conr.data.pack import pack
from conr.data.sources import open_source
from conr.data.store import open_store
from conr.parameters import FinetuneStage, ParamsFile, PretrainStage
from conr.training import pseudo_labels
from conr.training.checkpoints import Checkpoint
from conr.training.group import finetune
from conr.training.instance import pretrain
from stages.params_file import view_of
from stages.pretrain import fresh_model

ROOT = Path(__file__).resolve().parents[1]
ITERATIONS, EPOCHS = 100, 5


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, help="(N, D) float32 unit vectors to measure instead")
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--restarts", type=int, default=40)
    arguments = parser.parse_args()
    print(
        "| data | K | restarts | scikit-learn, s | faiss, s | conr, s | scikit-learn / conr | faiss / conr "
        "| inertia, conr / scikit-learn | conr / faiss |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    if arguments.embeddings:
        compare(arguments.embeddings.stem, np.load(arguments.embeddings), arguments.clusters, arguments.restarts, 1)
        return
    pixels = load_digits().data.astype(np.float32)
    compare("digits, pixels", pixels / np.linalg.norm(pixels, axis=1, keepdims=True), 10, 40, 5)
    compare("synthetic", synthetic(60_000, 10), 10, 20, 1)
    compare("synthetic", synthetic(60_000, 20), 20, 2, 1)
    compare("synthetic", synthetic(100_000, 200), 200, 1, 1)
    print(f"\n{between_epochs()}")


def synthetic(count: int, clusters: int) -> np.ndarray:
    """(N, 256) unit vectors near a space of 16 dimensions, in clusters that overlap."""
    random = np.random.default_rng(0)
    low = random.normal(size=(clusters, 16))[random.integers(0, clusters, count)]
    low += 0.7 * random.normal(size=low.shape)
    features = low @ random.normal(size=(16, 256)) / 4 + 0.05 * random.normal(size=(count, 256))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def compare(name: str, features: np.ndarray, clusters: int, restarts: int, repeats: int) -> None:
    """Print a row: medians of interleaved repeats."""

    def sklearn(algorithm: str) -> float:
        return (
            KMeans(clusters, n_init=restarts, max_iter=ITERATIONS, algorithm=algorithm, random_state=0)
            .fit(features)
            .inertia_
        )

    def ours(spherical: bool = True) -> float:
        return kmeans(features, clusters, seed=0, restarts=restarts, iterations=ITERATIONS, spherical=spherical).inertia

    def with_faiss() -> float:
        run = faiss.Kmeans(
            features.shape[1],
            clusters,
            niter=ITERATIONS,
            nredo=restarts,
            seed=1,
            spherical=True,
            init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
            early_stop_threshold=1e-6,
            min_points_per_centroid=1,
            max_points_per_centroid=len(features),
        )
        run.train(features)
        products, _ = run.index.search(features, 1)
        return float(2 * len(features) - 2 * products.sum(dtype=np.float64))

    calls: list[Callable[[], float]] = [lambda: sklearn("lloyd"), lambda: sklearn("elkan"), with_faiss, ours]
    ours()  # the first call of a process starts its threads
    seconds: list[list[float]] = [[] for _ in calls]
    inertias = [0.0 for _ in calls]
    for _ in range(repeats):
        for number, call in enumerate(calls):
            started = time.perf_counter()
            inertias[number] = call()
            seconds[number].append(time.perf_counter() - started)
    lloyd, elkan, theirs, own = (statistics.median(row) for row in seconds)
    best = min(lloyd, elkan)
    print(
        f"| {name}, {len(features):,} × {features.shape[1]} | {clusters} | {restarts} | {best:.2f} | {theirs:.2f} "
        f"| {own:.2f} | {best / own:.1f} | {theirs / own:.1f} | {ours(spherical=False) / min(inertias[:2]):.5f} "
        f"| {inertias[3] / inertias[2]:.5f} |",
        flush=True,
    )


def between_epochs() -> str:
    """Train the digits preset for some epochs of both stages; which share of one of the second k-means took."""
    preset = yaml.safe_load((ROOT / "presets/digits.yaml").read_text())
    preset["pretrain"]["epochs"] = preset["finetune"]["epochs"] = EPOCHS
    params = ParamsFile.model_validate(preset)
    seconds: list[float] = []
    original = pseudo_labels.kmeans_tensors

    def timed(*arguments: object, **options: object) -> object:
        started = time.perf_counter()
        result = original(*arguments, **options)
        seconds.append(time.perf_counter() - started)
        return result

    pseudo_labels.kmeans_tensors = timed
    with tempfile.TemporaryDirectory() as folder:
        pack(open_source(params.prepare), params.prepare, Path(folder) / "store")
        store = open_store(Path(folder) / "store")
        first, second = view_of(PretrainStage, params), view_of(FinetuneStage, params)
        model, _ = fresh_model(first, store.manifest)
        pretrain(model, store.training_images, None, first, Checkpoint(Path(folder) / "pretrain"))
        rows = finetune(model, store.training_images, None, second, EPOCHS, Checkpoint(Path(folder) / "finetune"))
    pseudo_labels.kmeans_tensors = original
    epoch, again = statistics.median(float(row["seconds"]) for row in rows), statistics.median(seconds[1:])
    return (
        f"digits preset: an epoch {epoch:.2f} s, k-means after it {again * 1e3:.1f} ms = {again / epoch:.2%}; "
        f"the first one, 40 restarts, {seconds[0] * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
