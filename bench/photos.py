"""k-means beside the graph on labeled image sets: pixels, colors, frozen features, and features from scratch.

    make bench-photos                                     # digits, and the sets that are installed
    make bench-photos ARGS='--cifar10 FOLDER'             # CIFAR-10's 10,000 test images, too
    make bench-photos ARGS='--heads'                      # and heads on the frozen features, which take longest

Sets are those of photo_sets.py, features those of photo_features.py; a set that is missing is skipped, with a line that
says what it needs. Each is clustered into as many clusters as it has classes, with 5 seeds. A long-tailed set is drawn
with 5 seeds: its largest class is ten times the smallest, and chance orders the classes. k-means has 40
initializations on the unit sphere for embeddings, and 10 plain ones for pixels and colors; the graph has its own
defaults; auto is the one of the two that conr.choose_method chooses. Labels choose the long-tailed images and enter the
scores; they steer nothing.

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
from photo_features import BYOL, COLORS, CONNR, EMBEDDINGS, FROZEN, HEADS, PIXELS, TRAINED, Features
from photo_sets import ImageSet, MissingSetError

from conr import Workspace, choose_method, kmeans, label_scores
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
Cost = dict[str, float]

KMEANS, GRAPH, AUTO = METHODS = "k-means", "graph", "auto"
FEATURES = "features"  # in the place of a method: what it took to compute them
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
    flags.add_argument("--heads", action="store_true", help="also refine the frozen features with ConNR")
    flags.add_argument("--jobs", type=int, default=cores(), help="processes side by side")
    given = flags.parse_args(arguments)
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # of the processes
    file = given.state / "rows.jsonl"
    write_text(file, "".join(f"{json.dumps(row)}\n" for row in read_rows(file)))
    with Workers(given.jobs, warm_up, kill_on_error=True) as pool:
        for images in available(given.cifar10, given.photos):
            folder = given.state / images.name
            images.pack(Workspace.at(folder))
            kinds = features_of(images.name, given.heads)
            side_by_side(pool, feature_works(folder, kinds, given.seeds), file)
            side_by_side(pool, clusterings(folder, kinds, given.seeds, read_rows(file)), file)
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


def features_of(name: str, heads: bool) -> tuple[str, ...]:
    """The features of a set that are clustered. The digits have no colors, and are learned from scratch."""
    own = (PIXELS, FROZEN, BYOL, CONNR) if name == "digits" else (PIXELS, COLORS, FROZEN)
    return (*own, HEADS) if heads else own


def feature_works(folder: Path, kinds: Sequence[str], seeds: Sequence[int]) -> Iterator[Work]:
    """The features of a set that are missing."""
    for features in kinds:
        wanted = seeds if features in TRAINED else (0,)
        missing = [seed for seed in wanted if not photo_features.path(folder, features, seed).exists()]
        if features == HEADS and missing:
            yield partial(refine, folder, missing)
        elif features == CONNR:
            yield from (partial(train, folder, seed) for seed in missing)
        elif features != BYOL:  # which comes with ConNR
            yield from (partial(compute, folder, features) for _ in missing)


def clusterings(folder: Path, kinds: Sequence[str], seeds: Sequence[int], rows: Sequence[Row]) -> Iterator[Work]:
    """The clusterings of a set that are missing."""
    done = {(*key_of(row), row["seed"]) for row in rows}
    tails = ("", TAIL) if folder.name in TAILED else ("",)
    for features, tail, seed in product(kinds, tails, seeds):
        missing = [method for method in METHODS if (folder.name + tail, features, method, seed) not in done]
        if missing:
            yield partial(cluster, folder, folder.name + tail, features, seed, missing)


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


def refine(folder: Path, seeds: Sequence[int]) -> list[Row]:
    """Refine frozen features with every seed; the lines say what that took."""
    found = photo_features.refine(folder, seeds)
    return [row_of((folder.name, HEADS, FEATURES), seed, cost) for seed, cost in found.items()]


def compute(folder: Path, features: str) -> list[Row]:
    """Compute features; the line says what that took."""
    return [row_of((folder.name, features, FEATURES), 0, photo_features.compute(folder, features))]


def cluster(folder: Path, name: str, features: str, seed: int, methods: Sequence[str]) -> list[Row]:
    """Cluster features with a seed; a line for each method has scores and costs. Auto costs what both do."""
    manifest = open_store(Workspace.at(folder).store).manifest
    labels, clusters = np.array(manifest.labels), len(manifest.class_names)
    kept = drawn(labels, seed) if name.endswith(TAIL) else np.arange(len(labels))
    chosen = np.load(photo_features.path(folder, features, seed))[kept]
    rows = []
    for method, (found, cost) in clustered(chosen, clusters, seed, features in EMBEDDINGS).items():
        if method in methods:
            rows.append(
                row_of((name, features, method), seed, {"count": len(kept)}, label_scores(labels[kept], found), cost)
            )
    return rows


def clustered(features: Features, clusters: int, seed: int, embedded: bool) -> dict[str, tuple[Labels, Cost]]:
    """The clusters of every method, and what they cost."""
    n_init = N_INIT if embedded else N_INIT_PIXELS
    by_kmeans, cost = photo_features.measured(
        lambda: kmeans(features, clusters, seed=seed, n_init=n_init, spherical=embedded).assignments
    )
    by_graph, other = photo_features.measured(lambda: graph_clusters(features, clusters, seed=seed).assignments)
    units = features / np.linalg.norm(features, axis=1, keepdims=True).clip(min=np.finfo(np.float32).tiny)
    chosen = by_graph if choose_method(units, by_kmeans, by_graph) == GRAPH else by_kmeans
    both = {name: cost[name] + other[name] for name in ("wall", "processor")}
    both["memory"] = max(cost["memory"], other["memory"])
    return {KMEANS: (by_kmeans, cost), GRAPH: (by_graph, other), AUTO: (chosen, both)}


def warm_up() -> None:
    """Load what clustering needs, so that the first one does not pay for it."""
    points = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    for found, _ in clustered(points, 2, 0, True).values():
        label_scores(found, np.arange(100) % 2)


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
    for method in (GRAPH, AUTO):
        text += gains(method, found)
    return "\n".join(text) + "\n"


def gains(method: str, found: Mapping[Key, Sequence[Row]]) -> list[str]:
    """What a method gains over k-means."""
    titles = [SCORES[score].title for score in SHOWN]
    text = ["", f"The mean of {method} less that of k-means, in points:", "", head("images", "features", *titles)]
    columns = []
    for name, features, own in found:
        if own == method and (name, features, KMEANS) in found:
            before, after = found[name, features, KMEANS], found[name, features, method]
            columns.append([100 * (mean(after, score) - mean(before, score)) for score in SHOWN])
            text.append(line(name, features, *(f"{gain:+.1f}" for gain in columns[-1])))
    if columns:
        text.append(line("mean", "", *(f"{statistics.mean(column):+.1f}" for column in zip(*columns, strict=True))))
    return text


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
