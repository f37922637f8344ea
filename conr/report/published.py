"""Numbers that others have published, and whether a run may stand beside them.

They are in `published.csv`, in percent, an empty field where the source says nothing. They belong in one table with a
run only if the same images were scored, at the same size, in as many clusters, after training on the same ones.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class RunFacts:
    """What decides whether scores can be compared.

    Attributes:
        dataset: the value of prepare.source.
        scored_images: images that the scores are taken on.
        image_size: height and width in pixels.
        protocol: all (train and score on the same images) or held-out.
        imbalance: size of the largest class over that of the smallest in a long-tailed subset; 1 for all images.
        clusters: how many the images are sorted into.
    """

    dataset: str
    scored_images: int
    image_size: int
    protocol: str
    imbalance: float
    clusters: int


@dataclass(frozen=True)
class Published:
    """A published result; None or an empty text where its source does not say.

    Attributes:
        method: its name in the source.
        dataset, images, protocol, imbalance, image_size, clusters: as in `RunFacts`.
        architecture: the encoder.
        nmi, acc, ari: in percent.
        acc_std: standard deviation of the accuracy over the seeds.
        seeds: how many there were.
        source: the publication.
        place: where in it.
    """

    method: str
    dataset: str
    images: int | None
    protocol: str
    imbalance: float
    image_size: int | None
    clusters: int
    architecture: str
    nmi: float | None
    acc: float | None
    ari: float | None
    acc_std: float | None
    seeds: int | None
    source: str
    place: str


@cache
def load() -> tuple[Published, ...]:
    """All published results, in the order of the file."""
    lines = (files("conr.report") / "published.csv").read_text(encoding="utf-8").splitlines()
    return tuple(_result(row) for row in csv.DictReader(lines))


def beside(run: RunFacts) -> tuple[list[Published], list[str]]:
    """The published results that may stand beside a run.

    Returns:
        Those with the same images, image size, protocol, imbalance and clusters. If there are none, what differs from
        the most similar one, such as "images: 59,998 here, 60,000 in the paper". Nothing at all for a data set without
        published results.
    """
    compared = [(result, _differences(run, result)) for result in load() if result.dataset == run.dataset]
    rows = [result for result, differences in compared if not differences]
    if rows or not compared:
        return rows, []
    # A long-tailed result is nearer to a long-tailed run, even if less is known of it.
    _, nearest = min(compared, key=lambda pair: (pair[0].imbalance != run.imbalance, len(pair[1])))
    return [], nearest


def _differences(run: RunFacts, result: Published) -> list[str]:
    pairs = {
        "protocol": (run.protocol, result.protocol),
        "images": (f"{run.scored_images:,}", "" if result.images is None else f"{result.images:,}"),
        "image size": (_size(run.image_size), "" if result.image_size is None else _size(result.image_size)),
        "imbalance": (_imbalance(run.imbalance), _imbalance(result.imbalance)),
        "clusters": (f"{run.clusters}", f"{result.clusters}"),
    }
    return [
        f"{name}: {here} here, {there or 'not stated'} in the paper"
        for name, (here, there) in pairs.items()
        if here != there
    ]


def _size(pixels: int) -> str:
    return f"{pixels}×{pixels}"


def _imbalance(ratio: float) -> str:
    return "none" if ratio == 1 else f"{ratio:g}"


def _result(row: dict[str, str]) -> Published:
    def number(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    def whole(name: str) -> int | None:
        return int(row[name]) if row[name] else None

    return Published(
        method=row["method"],
        dataset=row["dataset"],
        images=whole("images"),
        protocol=row["protocol"],
        imbalance=float(row["imbalance"]),
        image_size=whole("image_size"),
        clusters=int(row["clusters"]),
        architecture=row["architecture"],
        nmi=number("nmi"),
        acc=number("acc"),
        ari=number("ari"),
        acc_std=number("acc_std"),
        seeds=whole("seeds"),
        source=row["source"],
        place=row["place"],
    )
