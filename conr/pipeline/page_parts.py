"""The parts of the page that show images: cards of clusters, the map, and images that should be looked at."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from conr.data.store import Manifest, Store
from conr.evaluation.assignment import Assignment
from conr.evaluation.evaluate import Evaluation
from conr.evaluation.plane import nearest_images
from conr.report.map import MOST_POINTS, ImageMap
from conr.report.page import Choice, ClusterCard, Group, Sample, Skipped

NEAREST = 8  # images beside one that is clicked
GROUPS = 24  # of equal images, or images of a single color, that the page shows


@dataclass(frozen=True)
class Extras:
    """What the page shows beside scores and figures; each part may be missing.

    Attributes:
        embeddings: (N, D) float32 unit vectors of all images, of which the map shows the nearest; needed for a map.
        positions: (N, 2) float32 from `embedding_map`; None for no map.
        neighbors: (N, ≥ 9) int64 nearest images by cosine, if they are known already.
        names: names of clusters that have one.
        method: how the clusters were made, for people.
        result: the row of the scores that is of these clusters, where there are others.
        choice: how the number of clusters was settled.
    """

    embeddings: NDArray[np.float32] | None = None
    positions: NDArray[np.float32] | None = None
    neighbors: NDArray[np.int64] | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    method: str | None = None
    result: str | None = None
    choice: Choice | None = None


NO_EXTRAS = Extras()


def image_map(assignment: Assignment, store: Store, extras: Extras) -> ImageMap | None:
    """The map of all images, or of 65,535 drawn by chance where there are more; None without positions."""
    if extras.positions is None or extras.embeddings is None:
        return None
    count, neighbors = store.manifest.count, extras.neighbors
    points = np.arange(count)
    if count > MOST_POINTS:
        points, neighbors = np.sort(np.random.default_rng(0).permutation(count)[:MOST_POINTS]), None
    labels = store.label_names
    return ImageMap(
        images=store.images,
        points=points,
        positions=extras.positions[points],
        clusters=assignment.clusters[points],
        next_clusters=assignment.next_cluster[points],
        boundary_ratios=assignment.boundary_ratio[points],
        files=[store.manifest.files[image] for image in points],
        labels=None if labels is None else [labels[image] for image in points],
        neighbors=nearest_images(extras.embeddings[points], NEAREST, neighbors=neighbors),
    )


def groups_to_check(assignment: Assignment, store: Store) -> list[Group]:
    """Images of a single color, and those that are equal: the first of each with the names of all."""
    manifest = store.manifest
    equal: dict[int, list[int]] = defaultdict(list)
    for image, first in manifest.duplicates:
        equal[first].append(image)
    sets = {
        "Images of a single color": [[image] for image in manifest.blank],
        "Images that equal another one": [[first, *others] for first, others in equal.items()],
    }
    return [
        Group(
            title=title,
            shown=[
                (_sample(images[0], assignment, store), [manifest.files[image] for image in images])
                for images in found[:GROUPS]
            ],
            more=max(len(found) - GROUPS, 0),
        )
        for title, found in sets.items()
        if found
    ]


def skipped_by_reason(manifest: Manifest) -> list[Skipped]:
    """What is not in the store, the most frequent reason first."""
    first: dict[str, str] = {}
    for file, reason in manifest.skipped:
        first.setdefault(reason, file)
    counts = Counter(reason for _, reason in manifest.skipped)
    return [Skipped(reason, count, first[reason]) for reason, count in counts.most_common()]


def cards(result: Evaluation, store: Store, shown: int) -> list[ClusterCard]:
    """A card for each cluster, with so many of its most typical images, and half as many of its borderline ones."""
    return [_card(result, store, cluster, members, shown) for cluster, members in enumerate(result.typical)]


def _card(result: Evaluation, store: Store, cluster: int, typical: list[int], shown: int) -> ClusterCard:
    """What the page shows of a cluster, of which the most typical members come first."""
    ratios = result.assignment.boundary_ratio
    labels = Counter(sorted(filter(None, (_label(image, store) for image in typical))))
    majority, most = labels.most_common(1)[0] if labels else (None, 0)
    borderline = sorted(typical, key=lambda image: -ratios[image])[: shown // 2] if len(result.centroids) > 1 else []
    return ClusterCard(
        number=cluster,
        size=len(typical),
        share=len(typical) / store.manifest.count,
        uncertainty=float(ratios[typical].mean()) if typical else 0.0,
        label=majority,
        label_share=most / max(labels.total(), 1),
        typical=[_sample(image, result.assignment, store) for image in typical[:shown]],
        borderline=[_sample(image, result.assignment, store) for image in borderline],
    )


def _sample(image: int, assignment: Assignment, store: Store) -> Sample:
    other = int(assignment.next_cluster[image])
    return Sample(
        file=store.manifest.files[image],
        pixels=np.asarray(store.images[image]),
        boundary_ratio=float(assignment.boundary_ratio[image]),
        label=_label(image, store) or None,
        next_cluster=None if other < 0 else other,
        image=image,
    )


def _label(image: int, store: Store) -> str:
    return "" if store.labels is None else store.class_name(int(store.labels[image]))
