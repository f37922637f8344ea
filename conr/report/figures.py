"""The figures of a run as PNG files: training, cluster sizes, classes against clusters, map and gallery.

Those that the paper has, too, are in `conr.report.paper_figures`. Each function returns a figure; `save` writes it. The
colors suit the color-blind (Okabe and Ito's, and others as far apart), and no meaning depends on color only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image

from conr.data.images import ImageSource
from conr.evaluation.scores import AGREEMENT, SCORES
from conr.files import atomic_file
from conr.report.fonts import drawable, installed_fonts

Row = Mapping[str, float | None]
Pixels = NDArray[np.uint8]

DPI = 130
BLUE, ORANGE, GREEN, PINK, SKY, AMBER = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
WINE, OLIVE, INDIGO, GRAY = "#882255", "#999933", "#332288", "#777777"
INK, FAINT = "#333333", "#dddddd"
CLUSTER_COLORS = (BLUE, AMBER, GREEN, PINK, SKY, ORANGE, WINE, OLIVE, INDIGO, GRAY)

HALO = withStroke(linewidth=3, foreground="white")

MOST_NAMED_BARS = 40
MOST_COUNTED_COLUMNS = 25
MOST_TICKS = 50
FEW_POINTS = 15  # up to here the points of a curve are marked
FEW = 0.1  # a cluster with less than this share of the mean size is pointed out
DARK = 0.55  # of the shades of blue, from 0 to 1: beyond, texts are white
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "weight": "bold", "color": INK}
TITLE_CHARACTERS = 10  # of an inch of a title
LEGEND_WIDTH = 110  # characters of all columns of a legend
MOST_GALLERY_ROWS, MOST_GALLERY_COLUMNS = 30, 24
SMALLEST_TILE, LARGEST_TILE, GAP, MARGIN = 48, 96, 4, 16  # pixels


@installed_fonts()
def training_figure(pretrain: Sequence[Row], finetune: Sequence[Row]) -> Figure:
    """Loss, scores and neighborhood against the epoch: panels below each other, those without any value left out.

    Args:
        pretrain: rows of the log: an epoch and quantities of `conr.evaluation.scores.SCORES`, None where not measured.
        finetune: the same for ConNR; its epochs continue those of pretraining.
    """

    def measured(keys: Sequence[str]) -> bool:
        return any(_curve([*pretrain, *finetune], key).size for key in keys)

    health = "Health without labels: a fall towards 0 is a collapse", ("size_entropy", "feature_std")
    panels: list[tuple[str, Sequence[str]]] = [
        ("Training loss (each stage has its own)", ["loss"]),
        ("Agreement with the labels: 1 is perfect", AGREEMENT) if measured(AGREEMENT) else health,
        ("Neighborhoods during ConNR, as shares", ["candidate_fraction", "neighbor_purity"]),
    ]
    panels = [panel for panel in panels if measured(panel[1])] or panels[:1]
    figure = Figure(figsize=(8, 0.6 + 2.5 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), sharex=True, squeeze=False)
    for axes, (title, keys) in zip(grid[:, 0], panels, strict=True):
        _draw_panel(axes, title, keys, pretrain, finetune)
    grid[-1, 0].set_xlabel("epoch" + (" (ConNR starts at the dotted line)" if pretrain and finetune else ""))
    return figure


def _draw_panel(axes: Axes, title: str, keys: Sequence[str], pretrain: Sequence[Row], finetune: Sequence[Row]) -> None:
    """Draw curves, named above the panel with their last value, and a line where ConNR starts."""
    tidy(axes, title)
    axes.grid(color=FAINT, linewidth=0.8)
    drawn = []
    for key, color in zip(keys, (BLUE, ORANGE, GREEN), strict=False):
        for stage in (pretrain, finetune):  # not joined: the stages minimize different losses
            epochs, values = _curve(stage, key)
            marker = "o" if len(values) <= FEW_POINTS else ""
            axes.plot(epochs, values, color=color, marker=marker, markersize=4, linewidth=1.8)
        values = _curve([*pretrain, *finetune], key)[1]
        if values.size:
            axes.plot([], [], color=color, linewidth=3, label=f"{SCORES[key].title}, last {values[-1]:.3g}")
        drawn += values.tolist()
    if drawn:
        legend_above(axes)
        if "loss" not in keys:
            axes.set_ylim(min([-0.03, *drawn]), max([1.03, *drawn]))
    else:
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color=INK)
        axes.set(xticks=[], yticks=[])
    if pretrain and finetune:
        axes.axvline((finetune[0]["epoch"] or 0) - 0.5, color=INK, linestyle=":", linewidth=1.2)


def _curve(rows: Sequence[Row], key: str) -> NDArray[np.float64]:
    """(2, n) epochs and values of a quantity where it was measured and is finite."""
    points = np.array([(row["epoch"], row.get(key)) for row in rows], dtype=np.float64).reshape(-1, 2)
    return points[np.isfinite(points[:, 1])].T


@installed_fonts()
def sizes_figure(sizes: NDArray[np.int64]) -> Figure:
    """The number of images in each of K clusters as bars, the largest on top; under a tenth of the mean in orange."""
    clusters, mean = len(sizes), float(sizes.mean())
    named = clusters <= MOST_NAMED_BARS
    order = np.argsort(-sizes, kind="stable")
    title = f"Images per cluster: {sizes.max():,} in the largest, {sizes.min():,} in the smallest"
    figure, axes = panel((8, 1.3 + clusters * (0.25 if named else 0.045)), title)
    colors = [ORANGE if sizes[cluster] < FEW * mean else BLUE for cluster in order]
    bars = axes.barh(np.arange(clusters), sizes[order], color=colors, height=0.8)
    axes.axvline(mean, color=INK, linestyle="--", linewidth=1.2, label=f"mean {mean:,.4g}")
    if ORANGE in colors:
        axes.barh([0], [0], color=ORANGE, label="under a tenth of the mean")
    legend_above(axes)
    axes.set(ylim=(clusters - 0.4, -0.6), xlabel="images", ylabel="cluster" if named else f"{clusters} clusters")
    if named:
        texts = axes.bar_label(bars, [f"{size:,}" for size in sizes[order]], padding=3, fontsize=9, color=INK)
        for text in texts:  # readable on the line of the mean, too
            text.set_path_effects([HALO])
        axes.set_yticks(np.arange(clusters), [str(cluster) for cluster in order], fontsize=9)
        axes.set_xlim(0, 1.1 * max(int(sizes.max()), 1))
    else:
        axes.set_yticks([])
    return figure


@installed_fonts()
def confusion_figure(table: NDArray[np.int64], class_names: list[str], cluster_numbers: list[int]) -> Figure:
    """How the images of each class are distributed over the clusters.

    Shade is the share of the class, the text in a cell the number of images.

    Args:
        table: (classes, clusters) counts, the columns in the order to show.
        class_names: name of each row.
        cluster_numbers: number of each column.
    """
    rows, columns = table.shape
    counted = columns <= MOST_COUNTED_COLUMNS
    edge = 0.46 if counted else 0.16
    size = np.clip(columns * edge + 2.8, 6, 14), np.clip(rows * min(edge, 0.4) + 1.6, 3.2, 14)
    names, numbers = list(map(shorten, class_names)), list(map(str, cluster_numbers))
    title = "Where the images of each class went" + (" (numbers are images)" if counted else "")
    figure, axes = panel(size, title, left=0.9 + 0.1 * max(map(len, names), default=0))
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    counts = {(row, column): str(table[row, column]) for row, column in np.argwhere(table > 0)} if counted else {}
    image = heat_map(axes, shares, counts, names, numbers, fontsize=8, limits=(0, 1))
    figure.colorbar(image, label="share of the class", shrink=min(1.0, 4 / figure.get_figheight()))
    axes.tick_params(labelsize=9 if max(rows, columns) <= MOST_COUNTED_COLUMNS else 7)
    axes.set(xlabel="cluster", ylabel="class")
    return figure


@installed_fonts()
def map_figure(points: NDArray[np.float32], clusters: NDArray[np.int64]) -> Figure:
    """A map of images at (N, 2) points, colored by their (N,) clusters; a cluster's number is at its median."""
    numbers, members = np.unique(clusters, return_inverse=True)
    medians = np.stack([np.median(points[clusters == number], axis=0) for number in numbers])
    colors = np.array(map_colors(medians))
    order = np.random.default_rng(0).permutation(len(points))  # else the last cluster covers the others
    figure, axes = panel((8, 7), "Map of the images: near is similar; numbers are clusters")
    size, (across, up) = np.clip(30_000 / len(points), 1.5, 30), points[order].T
    axes.scatter(across, up, c=colors[members[order]], s=size, alpha=0.65, linewidths=0)
    font_size = 12 if len(numbers) <= 30 else 8 if len(numbers) <= 100 else 6.5
    for number, (x, y) in zip(numbers, medians, strict=True):
        text = axes.text(x, y, str(number), ha="center", va="center", fontsize=font_size, weight="bold")
        text.set_path_effects([HALO])
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_visible(False)
    return figure


def map_colors(medians: NDArray[np.float32]) -> list[str]:
    """A color for each of (K, 2) cluster medians; where colors must repeat, they do so far apart."""
    chosen: list[str] = []
    for cluster, median in enumerate(medians):
        distances = np.linalg.norm(medians[:cluster] - median, axis=1)
        nearest = [min(distances[np.array(chosen) == color], default=np.inf) for color in CLUSTER_COLORS]
        chosen.append(CLUSTER_COLORS[np.argmax(nearest)])
    return chosen


@installed_fonts()
def gallery_figure(images: ImageSource, order: list[list[int]]) -> Figure:
    """One row of the most typical images per cluster, pixel by pixel: 24 images of 30 clusters at most.

    Args:
        images: (N, H, W, 3) uint8.
        order: for each cluster the indices of its images, the most typical first; empty for an empty one.
    """
    shown, left_out = [row[:MOST_GALLERY_COLUMNS] for row in order[:MOST_GALLERY_ROWS]], len(order) - MOST_GALLERY_ROWS
    tiles = montage(images, shown)
    height, width = tiles.shape[:2]
    left, top, bottom = 24 + 11 * len(str(len(shown) - 1)), 56, 40 if left_out > 0 else 10
    canvas = blank(top + height + bottom, max(left + width + 10, 620))
    canvas[top : top + height, left : left + width] = tiles
    figure, axes = picture(canvas, "The most typical images of each cluster")
    for row, indices in enumerate(shown):
        center = top + (row + 0.5) * height / len(shown) - GAP / 2
        axes.text(left - 10, center, str(row), ha="right", va="center", fontsize=10, color=INK)
        if not indices:
            axes.text(left, center, "no images", va="center", fontsize=9, color=INK)
    if left_out > 0:
        note = f"{left_out} more clusters are not shown here"
        figure.text(MARGIN, len(canvas) - 12, note, fontsize=9, color=INK, transform=axes.transData)
    return figure


def montage(images: ImageSource, order: Sequence[Sequence[int] | NDArray[np.int64]], gap: int = GAP) -> Pixels:
    """Tiles on white, (height, width, 3) uint8: a row of tiles per list of indices."""
    height, width = tile_size(*images.shape[1:3])
    columns = max([1, *map(len, order)])
    canvas = blank(max(len(order), 1) * (height + gap), columns * (width + gap))
    for row, indices in enumerate(order):
        for column, index in enumerate(indices):
            y, x = row * (height + gap), column * (width + gap)
            canvas[y : y + height, x : x + width] = resize(images[index], height, width)
    return canvas


def tile_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a tile: a whole multiple of a small image, a reduction of a large one."""
    longer = max(height, width)
    scale = LARGEST_TILE / longer if longer > LARGEST_TILE else -(-SMALLEST_TILE // longer)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """An (H, W, 3) image as a tile: enlarged with hard pixels, reduced smoothly."""
    method = Image.Resampling.NEAREST if height >= image.shape[0] else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((width, height), method))


def blank(height: int, width: int) -> Pixels:
    """White pixels, (height, width, 3)."""
    return np.full((height, width, 3), 255, dtype=np.uint8)


def picture(canvas: Pixels, title: str) -> tuple[Figure, Axes]:
    """A figure that shows (height, width, 3) pixels as they are, with pixels as coordinates and a title at the top."""
    height, width = canvas.shape[:2]
    figure = Figure(figsize=(width / DPI, height / DPI))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    figure.text(MARGIN, 18, title, va="top", weight="bold", fontsize=11, color=INK, transform=axes.transData)
    return figure, axes


def panel(size: tuple[float, float], title: str, left: float = 1) -> tuple[Figure, Axes]:
    """A figure of one panel, of a size in inches, with so many inches to the left of the panel for names."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    tidy(axes, fill(title, max(int((size[0] - left) * TITLE_CHARACTERS), 20)))
    return figure, axes


def heat_map(
    axes: Axes,
    values: NDArray[np.float64],
    texts: Mapping[tuple[int, int], str],
    rows: list[str],
    columns: list[str],
    fontsize: float,
    limits: tuple[float | None, float | None] = (None, None),
) -> AxesImage:
    """Shades of blue for (rows, columns) values, texts in some cells, and the names of rows and columns."""
    norm = Normalize(*limits)
    image = axes.imshow(values, cmap="Blues", norm=norm, aspect="auto", interpolation="nearest")
    for axis, names in ((axes.yaxis, rows), (axes.xaxis, columns)):
        step = -(-len(names) // MOST_TICKS)
        axis.set_ticks(range(0, len(names), step), names[::step])
    axes.tick_params(length=0)
    for (row, column), text in texts.items():
        color = "white" if norm(float(values[row, column])) > DARK else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=fontsize, color=color)
    return image


def tidy(axes: Axes, title: str) -> None:
    """Give a panel its title and only the spines that carry an axis."""
    axes.set_title(title, **TITLE, pad=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def legend_above(axes: Axes) -> None:
    """A legend between title and panel, where it covers no data; the title makes way for its lines."""
    labels = axes.get_legend_handles_labels()[1]
    columns = max(min(LEGEND_WIDTH // (max(map(len, labels), default=0) + 5), len(labels)), 1)
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "borderaxespad": 0.2}
    axes.legend(**style, ncols=columns, loc="lower left", bbox_to_anchor=(-0.01, 1))
    lines = -(-len(labels) // columns)
    axes.set_title(axes.get_title("left"), **TITLE, pad=11 + 15 * lines)


def shorten(name: str, length: int = 24) -> str:
    """A name for a tick: on one line, of bounded length, and of characters that matplotlib draws as they are."""
    name = drawable(" ".join(name.split()).encode(errors="replace").decode()).replace("$", r"\$")
    return name if len(name) <= length else name[: length - 1] + "…"


def save(figure: Figure, path: Path) -> None:
    """Write a figure without the date or the library's version: the same run gives the same file."""
    with atomic_file(path) as temporary, installed_fonts():
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
