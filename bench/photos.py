"""k-means beside the graph on labeled image sets: pixels, colors, frozen features, and features from scratch.

    make bench-photos                                     # digits, and the sets that are installed
    make bench-photos ARGS='--cifar10 FOLDER'             # CIFAR-10's 10,000 test images, too

Sets are those of photo_sets.py, features those of photo_features.py; a set that is missing is skipped, with a line that
says what it needs. Each is clustered into as many clusters as it has classes, with 5 seeds. A long-tailed set is drawn
with 5 seeds: its largest class is ten times the smallest, and chance orders the classes. k-means has 40
initializations on the unit sphere for embeddings, and 10 plain ones for pixels and colors; the graph has its own
defaults. Labels choose the long-tailed images and enter the scores; they steer nothing.

Results are kept in STATE/rows.jsonl, a line for each seed, and features beside it: run the same command to resume.
After a change of code or images delete the lines in question, or STATE. As many processes as cores (--jobs) run side by
side, each with one thread.
"""

import json
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import suppress
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import photo_features
import photo_sets
from common import ROOT, head, line, parser
from numpy.typing import NDArray
from photo_features import BYOL, COLORS, CONNR, EMBEDDINGS, FROZEN, PIXELS, TRAINED, Features
from photo_sets import ImageSet, MissingSetError

from conr import Workspace, kmeans, label_scores
from conr.clustering import graph_clusters
from conr.data.long_tail import long_tail
from conr.data.store import open_store
from conr.evaluation.scores import SCORES, MeanStd
from conr.files import write_text
from conr.processes import Workers, cores

Labels = NDArray[np.int64]
Key = tuple[str, str, str]  # images, features, method
Row = dict[str, Any]  # a line of results
Work = Callable[[], list[Row]]

KMEANS, GRAPH, FEATURES = "k-means", "graph", "features"  # methods; the last: what it took to compute features
TAILED, TAIL, RATIO = ("digits", "CIFAR-10"), ", long tail", 10.0  # sets that are drawn from, too
N_INIT, N_INIT_PIXELS = 40, 10  # of k-means on embeddings, and on pixels and colors
SHOWN = ("acc", "nmi", "ari", "class_acc")
COSTS = ("features, processor s", "clustering, processor s", "memory, MB")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute what is missing, and print the tables."""
    flags = parser(__doc__)
    flags.add_argument("--cifar10", type=Path, help="CIFAR-10 as files, in a folder for each class")
    flags.add_argument("--photos", type=Path, help="images of yours, in a folder for each class")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    flags.add_argument("--state", type=Path, default=ROOT / ".conr/photos", help="folder of what is finished")
    flags.add_argument("--jobs", type=int, default=cores(), help="processes side by side")
    given = flags.parse_args(arguments)
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # of the processes
    file = given.state / "rows.jsonl"
    write_text(file, "".join(f"{json.dumps(row)}\n" for row in read_rows(file)))
    with Workers(given.jobs, warm_up, kill_on_error=True) as pool:
        for images in available(given.cifar10, given.photos):
            folder = given.state / images.name
            images.pack(Workspace.at(folder))
            side_by_side(pool, (*trainings(folder, given.seeds), *embeddings(folder)), file)
            side_by_side(pool, clusterings(folder, given.seeds, read_rows(file)), file)
    found = tables(read_rows(file))
    write_text(given.state / "tables.md", found)
    print(found)


def available(cifar10: Path | None, photos: Path | None) -> Iterator[ImageSet]:
    """The sets that are there; the others are named."""
    sets: dict[str, Callable[[], ImageSet]] = {
        "digits": photo_sets.digits,
        "hand signs": photo_sets.hand_signs,
        "solar cells": photo_sets.solar_cells,
        "CIFAR-10": partial(photo_sets.cifar10, cifar10),
        "photos": partial(photo_sets.photos, photos),
    }
    for name, load in sets.items():
        try:
            yield load()
        except MissingSetError as error:
            print(f"skipped {name}: {error}", flush=True)


def features_of(name: str) -> tuple[str, ...]:
    """The features of a set that are clustered. The digits have no colors, and are learned from scratch."""
    return (PIXELS, FROZEN, BYOL, CONNR) if name == "digits" else (PIXELS, COLORS, FROZEN)


def trainings(folder: Path, seeds: Sequence[int]) -> Iterator[Work]:
    """The networks of a set that are missing."""
    for seed in seeds:
        if CONNR in features_of(folder.name) and not photo_features.path(folder, CONNR, seed).exists():
            yield partial(train, folder, seed)


def embeddings(folder: Path) -> Iterator[Work]:
    """The features of a set without seeds that are missing."""
    for features in features_of(folder.name):
        if features not in TRAINED and not photo_features.path(folder, features, 0).exists():
            yield partial(compute, folder, features)


def clusterings(folder: Path, seeds: Sequence[int], rows: Sequence[Row]) -> Iterator[Work]:
    """The rows of a set that are missing."""
    done = {(*key_of(row), row["seed"]) for row in rows}
    tails = ("", TAIL) if folder.name in TAILED else ("",)
    for tail, features, method, seed in product(tails, features_of(folder.name), METHODS, seeds):
        key = (folder.name + tail, features, method)
        if (*key, seed) not in done:
            yield partial(cluster, folder, key, seed)


def key_of(row: Row) -> Key:
    """What the lines of a row of the table have in common."""
    return row["images"], row["features"], row["method"]


def row_of(key: Key, seed: int, *found: Mapping[str, float]) -> Row:
    """A line of results."""
    row = {**dict(zip(("images", "features", "method"), key, strict=True)), "seed": seed}
    return row | {name: round(value, 5) for values in found for name, value in values.items()}


def train(folder: Path, seed: int) -> list[Row]:
    """Learn features of the digits; the lines say what that took."""
    found = photo_features.train(folder, seed)
    return [row_of((folder.name, features, FEATURES), seed, cost) for features, cost in found.items()]


def compute(folder: Path, features: str) -> list[Row]:
    """Compute features; the line says what that took."""
    return [row_of((folder.name, features, FEATURES), 0, photo_features.compute(folder, features))]


def cluster(folder: Path, key: Key, seed: int) -> list[Row]:
    """Cluster features with a seed; the line has scores and costs."""
    manifest = open_store(Workspace.at(folder).store).manifest
    labels, clusters = np.array(manifest.labels), len(manifest.class_names)
    name, features, method = key
    kept = drawn(labels, seed) if name.endswith(TAIL) else np.arange(len(labels))
    chosen = np.load(photo_features.path(folder, features, seed))[kept]
    found, cost = photo_features.measured(partial(METHODS[method], chosen, clusters, seed, features in EMBEDDINGS))
    return [row_of(key, seed, {"count": len(kept)}, label_scores(labels[kept], found), cost)]


def by_kmeans(features: Features, clusters: int, seed: int, embedded: bool) -> Labels:
    """The clusters that k-means finds."""
    n_init = N_INIT if embedded else N_INIT_PIXELS
    return kmeans(features, clusters, seed=seed, n_init=n_init, spherical=embedded).assignments


def by_graph(features: Features, clusters: int, seed: int, embedded: bool) -> Labels:
    """The clusters of the ConAff graph, which compares directions."""
    return graph_clusters(features, clusters, seed=seed).assignments


METHODS = {KMEANS: by_kmeans, GRAPH: by_graph}


def warm_up() -> None:
    """Load what clustering needs, so that the first one does not pay for it."""
    points = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    for method in METHODS.values():
        label_scores(method(points, 2, 0, True), np.arange(100) % 2)


def drawn(labels: Labels, seed: int) -> NDArray[np.int64]:
    """Which images a long-tailed draw keeps, ascending; the seed orders images and classes."""
    random = np.random.default_rng(seed)
    order, ranks = random.permutation(len(labels)), random.permutation(labels.max() + 1)
    return np.sort(order[long_tail(ranks[labels[order]].tolist(), RATIO)])


def side_by_side(pool: Workers, works: Iterable[Work], file: Path) -> None:
    """Do each in a process of the pool; keep the lines of each at once."""
    for future in as_completed([pool.submit(work) for work in works]):
        with file.open("a", encoding="utf-8") as lines:
            lines.writelines(f"{json.dumps(row)}\n" for row in future.result())
        last = future.result()[-1]
        print(f"{', '.join(key_of(last))}, seed {last['seed']}: {last['wall']:.1f} s", flush=True)


def read_rows(file: Path) -> list[Row]:
    """The lines of results; one that was cut off does not count."""
    rows = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(text))
    return rows


def tables(rows: Sequence[Row]) -> str:
    """A row for every set, features and method, then what the graph gains over k-means, as Markdown."""
    found = {key: list(group) for key, group in groupby(sorted(rows, key=order_of), key_of)}
    titles = [SCORES[score].title for score in SHOWN]
    text = [head("images", "number", "features", "clusters", "ACC, median", *titles, *COSTS)]
    text += [line(*cells(key, found)) for key in found if key[2] != FEATURES]
    text += ["", "The graph's mean less that of k-means, in points:", "", head("images", "features", *titles)]
    gains = []
    for name, features, method in found:
        if method == GRAPH and (name, features, KMEANS) in found:
            both = [found[name, features, method] for method in METHODS]
            gains.append([100 * (mean(both[1], score) - mean(both[0], score)) for score in SHOWN])
            text.append(line(name, features, *(f"{gain:+.1f}" for gain in gains[-1])))
    text.append(line("mean", "", *(f"{statistics.mean(column):+.1f}" for column in zip(*gains, strict=True))))
    return "\n".join(text) + "\n"


def cells(key: Key, found: Mapping[Key, Sequence[Row]]) -> Iterator[str]:
    """A row of the table: scores are means with standard deviations, costs are means, memory the largest."""
    name, features, method = key
    rows, before = found[key], found.get((name.removesuffix(TAIL), features, FEATURES), ())
    yield from (
        name,
        f"{rows[0]['count']:,.0f}",
        features,
        method,
        f"{statistics.median(row['acc'] for row in rows):.3f}",
    )
    yield from (f"{MeanStd.of(row[score] for row in rows):.3f}" for score in SHOWN)
    yield f"{mean(before, 'processor'):.1f}" if before else ""
    yield f"{mean(rows, 'processor'):.2f}"
    yield f"{max(row['memory'] for row in rows):,.0f}"


def mean(rows: Iterable[Row], name: str) -> float:
    """The mean of a number."""
    return statistics.mean(row[name] for row in rows)


def order_of(row: Row) -> tuple[Any, ...]:
    """Lines of a row of the table stand together, and rows in the order in which they are computed."""
    names = [name for image_set in photo_sets.NAMES for name in (image_set, image_set + TAIL)]
    found = []
    for value, values in zip(key_of(row), (names, photo_features.NAMES, (*METHODS, FEATURES)), strict=True):
        found.append(values.index(value) if value in values else len(values))
    return (*found, *key_of(row), row["seed"])


if __name__ == "__main__":
    main()
