"""The report as one HTML file: scores, figures, and every cluster as a card of images.

The file needs nothing else: style, script and images are inside, and its content security policy forbids the browser to
fetch anything. Only the template formats numbers and escapes text from outside (file names, class names).
"""

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader
from numpy.typing import NDArray
from PIL import Image

from conr.evaluation.scores import AGREEMENT, SCORES, TABLE, MeanStd, Score
from conr.files import write_text
from conr.report.published import Published

LONGEST_EDGE, LONGEST_EDGE_OF_MANY = 128, 64  # pixels of a thumbnail
MANY_SAMPLES = 1500  # from here on the smaller edge, else the page grows to more than a browser likes
PIXELATED_BELOW = 64  # the edge of a thumbnail on the page: smaller images show their pixels


@dataclass(frozen=True)
class Sample:
    """An image on the page.

    Attributes:
        file: its name, relative to the source.
        pixels: (H, W, 3) uint8.
        boundary_ratio: 0 on its cluster's centroid, 1 half-way to the next one.
        label: its label, if there is one.
        next_cluster: the second nearest cluster.
    """

    file: str
    pixels: NDArray[np.uint8]
    boundary_ratio: float
    label: str | None
    next_cluster: int

    @property
    def is_small(self) -> bool:
        """Whether the page enlarges it."""
        return bool(max(self.pixels.shape[:2]) < PIXELATED_BELOW)


@dataclass(frozen=True)
class ClusterCard:
    """A cluster on the page.

    Attributes:
        number: its number, from 0.
        size: images in it.
        share: the same as a share of all images.
        uncertainty: the mean boundary ratio of its images.
        label: its most frequent label; None without labels.
        label_share: how many of its labeled images have that one, as a share.
        typical: the samples nearest to the centroid, the nearest first.
        borderline: the samples with the highest boundary ratio, the highest first.
    """

    number: int
    size: int
    share: float
    uncertainty: float
    label: str | None
    label_share: float
    typical: list[Sample]
    borderline: list[Sample]

    def differs(self, sample: Sample) -> bool:
        """Whether a sample has another label than the most frequent one."""
        return None not in (self.label, sample.label) and sample.label != self.label


@dataclass(frozen=True)
class ScoreLine:
    """A score of all networks.

    Attributes:
        score: what it is.
        values: of each network; None where unknown.
    """

    score: Score
    values: list[MeanStd | None]

    @property
    def change(self) -> float | None:
        """From the first network to the last, of the numbers as shown; None if one is unknown or not finite."""
        first, last = self.values[0], self.values[-1]
        if first is None or last is None or not math.isfinite(last.mean - first.mean):
            return None
        return round(last.mean, 3) - round(first.mean, 3)

    @property
    def verdict(self) -> str:
        """Better or worse, only where a higher score is better for certain."""
        change = round(self.change or 0, 3)
        return "" if not (self.score.higher_is_better and change) else "better" if change > 0 else "worse"


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
        title: headline and title of the page.
        facts: name and value, such as ("images", "1,797").
        scores: for each network by name, its scores by key.
        notes: plain sentences that a reader must not miss.
        figures: caption and PNG file.
        clusters: in any order; the page sorts them.
        published: results that can be compared with this run; empty for no table.
    """

    title: str
    facts: list[tuple[str, str]]
    scores: Mapping[str, Mapping[str, MeanStd]]
    notes: list[str]
    figures: list[tuple[str, Path]]
    clusters: list[ClusterCard]
    published: list[Published] = field(default_factory=list)

    def score_lines(self) -> list[ScoreLine]:
        """One line per score, with its meaning; the networks are columns."""
        found = {key: [row.get(key) for row in self.scores.values()] for key in TABLE}
        return [ScoreLine(SCORES[key], values) for key, values in found.items() if any(values)]

    @property
    def own(self) -> Mapping[str, MeanStd] | None:
        """The scores that are shown beside published ones; None without labels."""
        last = list(self.scores.values())[-1] if self.scores else {}
        return last if all(key in last for key in AGREEMENT) else None

    def clusters_by_size(self) -> list[ClusterCard]:
        """The largest first."""
        return sorted(self.clusters, key=lambda card: (-card.size, card.number))


def write_page(report: Report, path: Path) -> None:
    """Write the report as one HTML file that opens without a server or a network."""
    environment = Environment(loader=PackageLoader("conr", "report"), autoescape=True, keep_trailing_newline=True)
    environment.filters |= {
        "score": lambda value: f"{value:.3f}",
        "signed": _signed,
        "percent": _percent,
        "decimal": lambda value: "–" if value is None else f"{value:.1f}",
        "thumbnail": _thumbnail,
        "file": lambda figure: _data_uri(figure.read_bytes()),
    }
    samples = sum(len(card.typical) + len(card.borderline) for card in report.clusters)
    edge = LONGEST_EDGE if samples < MANY_SAMPLES else LONGEST_EDGE_OF_MANY
    html = environment.get_template("page.html.jinja").render(report=report, edge=edge)
    # A file name that is no valid text (Linux allows any bytes) must not stop the report.
    write_text(path, html, errors="replace")


def _signed(change: float) -> str:
    sign = "+" if round(change, 3) > 0 else "−" if round(change, 3) < 0 else "±"
    return f"{sign}{abs(change):.3f}"


def _percent(value: MeanStd) -> str:
    """A share in percent, as papers have it; of several seeds with their number."""
    if value.std is None:
        return f"{100 * value.mean:.1f}"
    return f"{100 * value.mean:.1f} ± {100 * value.std:.1f} ({value.count} seeds)"


def _thumbnail(pixels: NDArray[np.uint8], edge: int) -> str:
    """An (H, W, 3) image as PNG, reduced to the given longest edge but never enlarged."""
    image = Image.fromarray(pixels)
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return _data_uri(buffer.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
