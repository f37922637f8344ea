"""The report as one HTML file: scores, figures, and every cluster as a card of images.

The file needs nothing else: style, script and images are inside, and its content security policy forbids the browser to
fetch anything. Only the template formats numbers and escapes text from outside (file names, class names).
"""

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader
from numpy.typing import NDArray
from PIL import Image

from conr.evaluation.scores import AGREEMENT, SCORES, TABLE, MeanStd, Score
from conr.files import write_text
from conr.report.map import ImageMap
from conr.report.page_names import names_block
from conr.report.published import Published

LONGEST_EDGE, LONGEST_EDGE_OF_MANY = 128, 64  # pixels of a thumbnail
MANY_SAMPLES = 1500  # from here on the smaller edge
THUMBNAILS = 10_000_000  # bytes of all thumbnails with their markup: a browser is slow with much more
BESIDE_A_MAP = 0.8  # of these bytes on a page with a map, which has thumbnails of its own
MARKUP = 400  # bytes around a thumbnail, beside its file name
PROBES = 100  # thumbnails from which the size of all is estimated
LARGE_FIGURE = 300_000  # bytes of a PNG file from which a JPEG one is tried
PIXELATED_BELOW = 64  # the edge of a thumbnail on the page: smaller images show their pixels


@dataclass(frozen=True)
class Sample:
    """An image on the page.

    Attributes:
        file: its name, relative to the source.
        pixels: (H, W, 3) uint8.
        boundary_ratio: 0 on its cluster's centroid, 1 half-way to the next one.
        label: its label, if there is one.
        next_cluster: the second nearest cluster; None if no other one holds images.
        image: its number in the store; None where it has none.
    """

    file: str
    pixels: NDArray[np.uint8]
    boundary_ratio: float
    label: str | None
    next_cluster: int | None
    image: int | None = None

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
class Choice:
    """How the number of clusters was settled.

    Attributes:
        text: a sentence or two.
        caption, figure: a curve as PNG file, if there is one.
    """

    text: str
    caption: str = ""
    figure: Path | None = None


@dataclass(frozen=True)
class Group:
    """Images that should be looked at, for one reason.

    Attributes:
        title: the reason.
        shown: an image, and the names of all files that have its pixels.
        more: so many others are not shown.
    """

    title: str
    shown: list[tuple[Sample, list[str]]]
    more: int = 0


@dataclass(frozen=True)
class Skipped:
    """Files that are not in the store, for one reason.

    Attributes:
        reason: why.
        count: how many files.
        first: the name of the first.
    """

    reason: str
    count: int
    first: str


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
        map: the images in a plane; None for no map.
        names: names of clusters that have one.
        result: which of the scores are those of the clusters on the page, by name; None if all of them are.
        choice: how the number of clusters was settled; None if the user gave it.
        groups: images that should be looked at.
        skipped: files that are not in the store, by reason.
    """

    title: str
    facts: list[tuple[str, str]]
    scores: Mapping[str, Mapping[str, MeanStd]]
    notes: list[str]
    figures: list[tuple[str, Path]]
    clusters: list[ClusterCard]
    published: list[Published] = field(default_factory=list)
    map: ImageMap | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    result: str | None = None
    choice: Choice | None = None
    groups: list[Group] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def score_lines(self) -> list[ScoreLine]:
        """One line per score, with its meaning; the networks are columns."""
        found = {key: [row.get(key) for row in self.scores.values()] for key in TABLE}
        return [ScoreLine(SCORES[key], values) for key, values in found.items() if any(values)]

    @property
    def own(self) -> Mapping[str, MeanStd] | None:
        """The scores that are shown beside published ones; None without labels."""
        last = list(self.scores.values())[-1] if self.scores else {}
        return last if all(key in last for key in AGREEMENT) else None

    def sections(self) -> list[tuple[str, str]]:
        """Id and name of the parts of the page that have content."""
        parts = (
            ("images-map", "Map", self.map),
            ("clusters", "Clusters", self.clusters),
            ("scores", "Scores", self.scores),
            ("published", "Published numbers", self.published and self.own),
            ("figures", "Figures", self.figures),
            ("choice", "Number of clusters", self.choice),
            ("checks", "Images to check", self.groups or self.skipped),
        )
        return [(key, name) for key, name, content in parts if content]

    def clusters_by_size(self) -> list[ClusterCard]:
        """The largest first."""
        return sorted(self.clusters, key=lambda card: (-card.size, card.number))


def write_page(report: Report, path: Path) -> None:
    """Write the report as one HTML file that opens without a server or a network.

    Where the thumbnails would make the page too large, it shows fewer of each cluster and says so.
    """
    samples = sum(len(card.typical) + len(card.borderline) for card in report.clusters)
    thumbnails = _Thumbnails(LONGEST_EDGE if samples < MANY_SAMPLES else LONGEST_EDGE_OF_MANY)
    report = _within_budget(report, thumbnails)
    environment = Environment(loader=PackageLoader("conr", "report"), autoescape=True, keep_trailing_newline=True)
    environment.filters |= {
        "score": lambda value: f"{value:z.3f}",
        "signed": _signed,
        "percent": _percent,
        "decimal": lambda value: "–" if value is None else f"{value:.1f}",
        "thumbnail": thumbnails.uri,
        "file": _figure_uri,
    }
    encoded = report.map.encoded() if report.map else None
    html = environment.get_template("page.html.jinja").render(
        report=report,
        sections=report.sections(),
        names=names_block(report.names),
        map=encoded,
        points=report.map.point_of if report.map else {},
        colors=encoded.colors if encoded else {},
    )
    # A file name that is no valid text (Linux allows any bytes) must not stop the report.
    write_text(path, html, errors="replace")


class _Thumbnails:
    """Thumbnails as data URIs, each encoded once."""

    def __init__(self, edge: int) -> None:
        self._edge = edge
        self._encoded: dict[int, str] = {}  # by the identity of samples, which live as long as the report

    def uri(self, sample: Sample) -> str:
        """An image reduced to the longest edge but never enlarged: as PNG, or as JPEG if it is large and that smaller.

        Small images, whose pixels the page shows, stay as they are.
        """
        if id(sample) not in self._encoded:
            image = Image.fromarray(sample.pixels)
            image.thumbnail((self._edge, self._edge), Image.Resampling.LANCZOS)
            best = _encoded(image, "PNG")
            if not sample.is_small:
                best = min(best, _encoded(image, "JPEG", quality=85), key=len)
            self._encoded[id(sample)] = _data_uri(best)
        return self._encoded[id(sample)]

    def size(self, sample: Sample) -> int:
        """Bytes of a thumbnail and its markup."""
        return len(self.uri(sample)) + MARKUP + len(sample.file)


def _within_budget(report: Report, thumbnails: _Thumbnails) -> Report:
    """The same report, if its thumbnails are small enough; else with fewer of each cluster, and a note that says so."""
    samples = [sample for card in report.clusters for sample in (*card.typical, *card.borderline)]
    limit = THUMBNAILS * (BESIDE_A_MAP if report.map else 1)
    probes = samples[:: max(len(samples) // PROBES, 1)]
    total = sum(map(thumbnails.size, probes)) / max(len(probes), 1) * len(samples)
    if total <= 0.9 * limit and sum(map(thumbnails.size, samples)) <= limit:
        return report
    share, left, cards = 0.9 * min(limit / total, 1), limit, []
    for card in report.clusters_by_size():
        typical = card.typical[: max(int(share * len(card.typical)), 1)]
        borderline = card.borderline[: int(share * len(card.borderline))]
        left -= sum(map(thumbnails.size, [*typical, *borderline])) if left > 0 else 0
        fits = left > 0
        cards.append(replace(card, typical=typical if fits else [], borderline=borderline if fits else []))
    shown = sum(len(card.typical) + len(card.borderline) for card in cards)
    note = (
        f"The page shows {shown:,} images of the {len(samples):,} that evaluate.gallery asks for: with more it would "
        "be too large for a browser. The table of assignments lists all."
    )
    return replace(report, clusters=cards, notes=[*report.notes, note])


def _signed(change: float) -> str:
    sign = "+" if round(change, 3) > 0 else "−" if round(change, 3) < 0 else "±"
    return f"{sign}{abs(change):.3f}"


def _percent(value: MeanStd) -> str:
    """A share in percent, as papers have it; of several seeds with their number."""
    if value.std is None:
        return f"{100 * value.mean:.1f}"
    return f"{100 * value.mean:.1f} ± {100 * value.std:.1f} ({value.count} seeds)"


def _figure_uri(path: Path) -> str:
    """A figure as the file that it is, or as JPEG where that is much smaller: one of many photos is."""
    png = path.read_bytes()
    if len(png) < LARGE_FIGURE:
        return _data_uri(png)
    with Image.open(path) as image:
        jpeg = _encoded(image.convert("RGB"), "JPEG", quality=85, subsampling=0)
    return _data_uri(jpeg if len(jpeg) < len(png) / 2 else png)


def _encoded(image: Image.Image, kind: str, **settings: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def _data_uri(image: bytes) -> str:
    kind = "jpeg" if image.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
