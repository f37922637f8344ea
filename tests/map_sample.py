"""A report with a map whose pixels are known: three clusters on three grids, each of one color."""

import numpy as np

from conr.report.map import ImageMap
from conr.report.page import ClusterCard, Report, Sample

SIDE, EDGE = 6, 12
EACH = SIDE**2
INKS = [(200, 40, 40), (40, 180, 60), (50, 60, 210)]
HOSTILE = '<img src=x onerror="alert(1)">&amp;</script>.png'


def make_map() -> ImageMap:
    """108 images, cluster 0 on the left, 1 in the middle, 2 on the right; neighbors follow an image in its grid."""
    number = np.arange(3 * EACH)
    clusters, place = number // EACH, number % EACH
    positions = np.stack([clusters * 10 + place % SIDE, -(place // SIDE)], axis=1).astype(np.float32)
    images = np.array(INKS, np.uint8)[clusters][:, None, None].repeat(EDGE, 1).repeat(EDGE, 2)
    images[:, 0, 0] = np.stack([number, number, number], axis=1)  # all are different
    return ImageMap(
        images=images,
        points=number,
        positions=positions,
        clusters=clusters,
        next_clusters=np.where(clusters == 2, -1, clusters + 1),
        boundary_ratios=np.linspace(0, 1.2, len(number)).astype(np.float32),
        files=[HOSTILE, *(f"folder {i % 2}/image-{i:03}.png" for i in number[1:])],
        labels=[["owl", "cat", ""][cluster] for cluster in clusters],
        neighbors=clusters[:, None] * EACH + (place[:, None] + np.arange(1, 9)) % EACH,
    )


def make_mapped_report() -> Report:
    """The map with cards of its three clusters, of which cluster 1 has a name."""
    found = make_map()

    def sample(image: int) -> Sample:
        label = (found.labels or [])[image] or None
        return Sample(found.files[image], found.images[image], 0.25, label, 0, image)

    cards = [
        ClusterCard(k, EACH, 1 / 3, 0.5, ["owl", "cat", None][k], 1.0, [sample(k * EACH + i) for i in range(3)], [])
        for k in range(3)
    ]
    return Report("Three colors", [], {}, [], [], cards, map=found, names={1: "Leaves <b>"})
