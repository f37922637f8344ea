"""Published results, and whether a run can be compared with them.

They are in `published.csv`, in percent, an empty field where the source says nothing. They are shown beside a
run only if the same images were scored, at the same size, in as many clusters, after training on the same ones.
"""

import csv
from collections.abc import Callable
from functools import cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict


class Benchmark(BaseModel):
    """What decides whether scores can be compared; None where a source does not say.

    Attributes:
        dataset: the value of prepare.source.
        protocol: all (train and score on the same images) or held-out.
        images: how many the scores are taken on.
        image_size: height and width in pixels.
        imbalance: size of the largest class over that of the smallest in a long-tailed subset; 1 for all images.
        clusters: how many the images are sorted into.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    protocol: str | None = None
    images: int | None = None
    image_size: int | None = None
    imbalance: float
    clusters: int


class Published(Benchmark):
    """A published result; None where its source does not say.

    Attributes:
        method: its name in the source.
        architecture: the encoder.
        nmi, acc, ari: in percent.
        acc_std: standard deviation of the accuracy over the seeds.
        seeds: how many there were.
        source: the publication.
        place: where in it.
    """

    method: str
    architecture: str | None = None
    nmi: float | None = None
    acc: float | None = None
    ari: float | None = None
    acc_std: float | None = None
    seeds: int | None = None
    source: str
    place: str


COMPARED: dict[str, Callable[..., str]] = {  # how each is shown
    "protocol": str,
    "images": "{:,}".format,
    "image_size": "{0}×{0}".format,
    "imbalance": lambda ratio: "none" if ratio == 1 else f"{ratio:g}",
    "clusters": str,
}


@cache
def load() -> tuple[Published, ...]:
    """All published results, in the order of the file."""
    lines = (files("conr.report") / "published.csv").read_text(encoding="utf-8").splitlines()
    return tuple(
        Published.model_validate({name: value for name, value in row.items() if value}) for row in csv.DictReader(lines)
    )


def beside(run: Benchmark) -> tuple[list[Published], list[str]]:
    """The published results that a run can be compared with.

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


def _differences(run: Benchmark, result: Published) -> list[str]:
    """Why a result cannot be compared with a run, in words."""
    return [
        f"{key.replace('_', ' ')}: {show(here)} here, {'not stated' if there is None else show(there)} in the paper"
        for key, show in COMPARED.items()
        if (here := getattr(run, key)) != (there := getattr(result, key))
    ]
