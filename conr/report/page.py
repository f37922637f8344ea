"""The report as one HTML file: scores, figures, and every cluster as a card of images.

The file needs nothing else: style, script and images are inside, and its own policy forbids the browser to fetch
anything. All text from outside (file names, class names) is escaped here and nowhere else.
"""

import base64
import io
import re
from dataclasses import dataclass, field
from decimal import Decimal
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conr.files import atomic_file

LONGEST_EDGE, LONGEST_EDGE_OF_MANY = 128, 64  # pixels of a thumbnail
MANY_SAMPLES = 1500  # from here on the smaller edge, else the page grows to more than a browser likes
PIXELATED_BELOW = 64  # the edge of a thumbnail on the page: smaller images show their pixels

MEANINGS = {
    "acc": "Images in the right cluster, if each cluster stands for one class. 1 is perfect.",
    "nmi": "How much the cluster tells about the class: 0 is nothing, 1 is everything.",
    "ari": "Agreement on which images belong together: 0 is chance, 1 is perfect.",
    "class acc": "ACC of each class alone, then the mean: a rare class counts as much as a common one.",
    "silhouette": "How much closer images are to their own cluster than to the next, from −1 to 1. Needs no labels.",
    "balance": "How equal the clusters are in size: 1 is equal, 0 is everything in one cluster. Neither need be right.",
}
HIGHER_IS_BETTER = {"acc", "nmi", "ari", "class acc", "silhouette"}


@dataclass(frozen=True)
class Sample:
    """An image on the page.

    Attributes:
        file: its name, as the user knows it.
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


@dataclass(frozen=True)
class ClusterCard:
    """A cluster on the page.

    Attributes:
        number: its number, from 0.
        size: images in it.
        share: the same as a share of all images.
        mean_boundary_ratio: over its images; shown as the cluster's uncertainty.
        label: majority label and its share as text, such as "7 (98 %)"; None without labels.
        typical: the samples nearest to the centroid, the nearest first.
        borderline: the samples with the highest boundary ratio, the highest first.
    """

    number: int
    size: int
    share: float
    mean_boundary_ratio: float
    label: str | None
    typical: list[Sample]
    borderline: list[Sample]


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
        title: headline and title of the page.
        facts: name and value, such as ("images", "1,797").
        score_rows: per network the formatted scores by name; "features" holds the name of the network.
        notes: plain sentences that a reader must not miss.
        figures: caption and PNG file.
        clusters: in any order; the page sorts them.
        published: a row a result, this run's own first: its cells by column, "source" the last. Empty for no table.
    """

    title: str
    facts: list[tuple[str, str]]
    score_rows: list[dict[str, str]]
    notes: list[str]
    figures: list[tuple[str, Path]]
    clusters: list[ClusterCard]
    published: list[dict[str, str]] = field(default_factory=list)


def write_page(report: Report, path: Path) -> None:
    """Write the report as one HTML file that opens without a server or a network."""
    room = files("conr.report")
    html = Template((room / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(report.title),
        style=(room / "page.css").read_text(encoding="utf-8"),
        script=(room / "page.js").read_text(encoding="utf-8"),
        facts=_facts(report.facts),
        notes=_notes(report.notes),
        scores=_scores(report.score_rows),
        published=_published(report.published),
        figures=_figures(report.figures),
        clusters=_clusters(report.clusters),
    )
    with atomic_file(path) as temporary:
        # A file name that is no valid text (Linux allows any bytes) must not stop the report.
        temporary.write_text(html, encoding="utf-8", errors="replace")


def difference(before: str, after: str) -> str | None:
    """The change between two formatted numbers, with a sign and as many decimals; None if one is no number.

    Of an `after` like "0.953 ± 0.004" the mean counts.
    """
    number = re.compile(r"-?\d+(\.\d+)?")
    old, new = number.fullmatch(before), number.fullmatch(after.partition(" ± ")[0])
    if old is None or new is None:
        return None
    gap = Decimal(new[0]) - Decimal(old[0])
    sign = "+" if gap > 0 else "−" if gap < 0 else "±"
    return f"{sign}{abs(gap)}"


def _facts(facts: list[tuple[str, str]]) -> str:
    rows = [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts]
    return f'<dl class="facts">{"".join(rows)}</dl>' if rows else ""


def _notes(notes: list[str]) -> str:
    rows = [f"<li>{escape(note)}</li>" for note in notes]
    return f'<ul class="notes">{"".join(rows)}</ul>' if rows else ""


def _scores(rows: list[dict[str, str]]) -> str:
    """The scores as lines, so that each has room for its meaning; the networks are columns, then the change."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "features"))
    if not names:
        return ""
    heads = [row.get("features", "") for row in rows] + ["change"] * (len(rows) > 1)
    lines = [_score_line(name, [row.get(name, "") for row in rows]) for name in names]
    return (
        '<section><h2>Scores</h2><table class="scores"><thead><tr><th scope="col">Score</th>'
        + "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
        + f"</tr></thead><tbody>{''.join(lines)}</tbody></table></section>"
    )


def _score_line(name: str, values: list[str]) -> str:
    cells = "".join(f"<td>{escape(value) or '–'}</td>" for value in values)
    if len(values) > 1:
        cells += _change(name, difference(values[0], values[-1]))
    meaning = escape(MEANINGS.get(name.lower(), ""))
    return f'<tr><th scope="row">{escape(name)}<small>{meaning}</small></th>{cells}</tr>'


def _change(name: str, change: str | None) -> str:
    """The last cell of a line; better and worse only where a higher score is better for certain."""
    if change is None:
        return "<td>–</td>"
    judged = name.lower() in HIGHER_IS_BETTER
    verdict = {"+": "better", "−": "worse"}.get(change[0], "") if judged else ""
    return f'<td class="{verdict}">{change}{f" <small>{verdict}</small>" if verdict else ""}</td>'


def _published(rows: list[dict[str, str]]) -> str:
    """The run among published results: a line each, the first is this run."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    lines = []
    for row in rows:
        name, *cells = [escape(row.get(column, "")) or "–" for column in columns]
        lines.append(f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    return f"""<section><h2>Published numbers</h2>
<p class="soft">In percent. The same images at the same size, trained and scored in the same way; network, epochs and
number of runs may differ.</p>
<div class="wide" tabindex="0"><table class="published"><thead><tr>{heads}</tr></thead>
<tbody>{"".join(lines)}</tbody></table></div></section>"""


def _figures(figures: list[tuple[str, Path]]) -> str:
    items = []
    for caption, path in figures:
        source, text = _data_uri(path.read_bytes()), escape(caption)
        items.append(
            f'<figure><button type="button" title="{text}" data-details="">'
            f'<img src="{source}" alt="{text}"></button><figcaption>{text}</figcaption></figure>'
        )
    return f'<section><h2>Figures</h2><div class="figures">{"".join(items)}</div></section>' if items else ""


def _clusters(clusters: list[ClusterCard]) -> str:
    if not clusters:
        return ""
    samples = sum(len(card.typical) + len(card.borderline) for card in clusters)
    edge = LONGEST_EDGE if samples < MANY_SAMPLES else LONGEST_EDGE_OF_MANY
    cards = [_card(card, edge) for card in sorted(clusters, key=lambda card: (-card.size, card.number))]
    strange = ""
    if any(card.label is not None for card in clusters):
        strange = ' <span class="key"></span> marks an image whose label is not its cluster\'s most frequent one.'
    return f"""<section><h2>Clusters</h2>
<p class="soft">Uncertainty tells how near images are to another cluster: 0 is at the centre of their own,
1 is half-way to the next.{strange}</p>
<div class="tools">
<input id="filter" type="search" placeholder="Cluster, label or file name" aria-label="Show only clusters with"
  autocomplete="off" spellcheck="false">
<label>Sort by <select id="sort">
<option value="size">size, largest first</option>
<option value="smallest">size, smallest first</option>
<option value="doubt">uncertainty</option>
<option value="number">number</option>
</select></label>
<span id="shown" class="soft" role="status"></span>
</div>
<p id="nothing" hidden>No cluster matches.</p>
<div id="cards" class="cards">{"".join(cards)}</div></section>
"""


def _card(card: ClusterCard, edge: int) -> str:
    majority = None if card.label is None else card.label.rpartition(" (")[0] or card.label
    label = "" if card.label is None else f'<span class="label">{escape(card.label)}</span>'
    unit = "image" if card.size == 1 else "images"
    body = "" if card.size else '<p class="soft">No image is nearest to this cluster.</p>'
    if card.typical:
        thumbs = "".join(_thumb(sample, card.number, majority, edge) for sample in card.typical)
        body += f'<h4>Typical</h4><div class="thumbs">{thumbs}</div>'
    if card.borderline:
        thumbs = "".join(
            f"<div>{_thumb(sample, card.number, majority, edge)}<br>could also be "
            f'<a href="#cluster-{sample.next_cluster}">cluster {sample.next_cluster}</a></div>'
            for sample in card.borderline
        )
        body += f'<h4>Borderline</h4><div class="thumbs borderline">{thumbs}</div>'
    return f"""
<article class="card" id="cluster-{card.number}" data-number="{card.number}" data-size="{card.size}"
  data-doubt="{card.mean_boundary_ratio:.6f}" data-label="{escape((majority or "").lower())}">
<div class="head"><h3>Cluster {card.number}</h3>{label}</div>
<div class="measures"><span>{card.size:,} {unit}, {100 * card.share:.1f} %</span>
<span class="doubt">uncertainty {card.mean_boundary_ratio:.2f}
<i><b style="width:{100 * min(max(card.mean_boundary_ratio, 0), 1):.0f}%"></b></i></span></div>
{body}
</article>"""


def _thumb(sample: Sample, cluster: int, majority: str | None, edge: int) -> str:
    """A button with the image; the file name and the rest are shown when it is enlarged."""
    details = f"Cluster {cluster}, next nearest cluster {sample.next_cluster}, uncertainty {sample.boundary_ratio:.2f}"
    if sample.label is not None:
        details += f", label {sample.label}"
    strange = " other" if None not in (majority, sample.label) and sample.label != majority else ""
    small = ' class="pixelated"' if max(sample.pixels.shape[:2]) < PIXELATED_BELOW else ""
    name = escape(sample.file)
    return (
        f'<button type="button" class="thumb{strange}" title="{name}" '
        f'data-details="{escape(details)}"><img{small} src="{_data_uri(_png(sample.pixels, edge))}" alt="" '
        f'loading="lazy" decoding="async"></button>'
    )


def _png(pixels: NDArray[np.uint8], edge: int) -> bytes:
    """An (H, W, 3) image as PNG, reduced to the given longest edge but never enlarged."""
    image = Image.fromarray(pixels)
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
