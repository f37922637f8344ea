"""The figures of a run as PNG files: training, cluster sizes, classes against clusters, map and gallery.

Those that the paper has, too, are in `conr.report.paper_figures`. Every figure has a function that builds it and one
that writes it. The colours suit the colour-blind (Okabe and Ito's, and others as far apart), and none carries a meaning
alone.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image

from conr.files import atomic_file

Row = Mapping[str, float | None]
Pixels = NDArray[np.uint8]

DPI = 130
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
INK, FAINT = "#333333", "#dddddd"
CLUSTER_COLOURS = (
    BLUE,
    "#E69F00",
    GREEN,
    PINK,
    "#56B4E9",
    ORANGE,
    "#882255",
    "#999933",
    "#332288",
    "#777777",
)

HALO = withStroke(linewidth=3, foreground="white")

NAMES = {
    "loss": "loss",
    "acc": "ACC",
    "nmi": "NMI",
    "ari": "ARI",
    "balance": "balance of the cluster sizes",
    "spread": "spread of the embeddings",
    "kept_fraction": "images that look for neighbours",
    "neighbour_purity": "neighbours that share the image's label",
}
MOST_NAMED_BARS = 40
MOST_COUNTED_COLUMNS = 25
MOST_TICKS = 50
FEW_POINTS = 15  # up to here the points of a curve are marked
FEW = 0.1  # a cluster with less than this share of the mean size is pointed out
MOST_GALLERY_ROWS = 30
SMALLEST_TILE, LARGEST_TILE, GAP = 48, 96, 4  # pixels


def training_curves(pretrain: Sequence[Row], finetune: Sequence[Row], path: Path) -> None:
    """Write loss, scores and neighbourhood against the epoch.

    Args:
        pretrain: rows of the log: an epoch and any of the quantities in `NAMES`, None where not measured.
        finetune: the same for ConNR; its epochs continue those of pretraining.
        path: the PNG file.
    """
    save(training_figure(pretrain, finetune), path)


def training_figure(pretrain: Sequence[Row], finetune: Sequence[Row]) -> Figure:
    """The figure of `training_curves`: one panel below the other, those without a single value left out."""
    rows = [*pretrain, *finetune]
    labelled = any(_curve(rows, key)[1] for key in ("acc", "nmi", "ari"))
    panels = [("Training loss (each stage has its own)", ["loss"])]
    if labelled:
        panels.append(("Agreement with the labels: 1 is perfect", ["acc", "nmi", "ari"]))
    else:
        panels.append(("Health without labels: a fall towards 0 is a collapse", ["balance", "spread"]))
    panels.append(("Neighbourhoods during ConNR, as shares", ["kept_fraction", "neighbour_purity"]))
    panels = [panel for panel in panels if any(_curve(rows, key)[1] for key in panel[1])] or panels[:1]

    figure = Figure(figsize=(8, 0.6 + 2.5 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), sharex=True, squeeze=False)
    for axes, (title, keys) in zip(grid[:, 0], panels, strict=True):
        _draw_panel(axes, title, keys, pretrain, finetune)
    grid[-1, 0].set_xlabel("epoch" + (" (ConNR starts at the dotted line)" if pretrain and finetune else ""))
    return figure


def _draw_panel(axes: Axes, title: str, keys: list[str], pretrain: Sequence[Row], finetune: Sequence[Row]) -> None:
    """Draw curves, named above the panel with their last value, and a line where ConNR starts."""
    tidy(axes, title, pad=26)
    axes.grid(color=FAINT, linewidth=0.8)
    for key, colour in zip(keys, (BLUE, ORANGE, GREEN), strict=False):
        for stage in (pretrain, finetune):  # not joined: the stages minimise different losses
            epochs, values = _curve(stage, key)
            marker = "o" if len(values) <= FEW_POINTS else ""
            axes.plot(epochs, values, color=colour, marker=marker, markersize=4, linewidth=1.8)
        last = _curve([*pretrain, *finetune], key)[1][-1:]
        if last:
            axes.plot([], [], color=colour, linewidth=3, label=f"{NAMES[key]}, last {last[0]:.3g}")
    values = [value for key in keys for value in _curve([*pretrain, *finetune], key)[1]]
    if values:
        legend_above(axes)
    else:
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color=INK)
        axes.set(xticks=[], yticks=[])
    if values and keys != ["loss"]:
        axes.set_ylim(min([-0.03, *values]), max([1.03, *values]))
    if pretrain and finetune:
        axes.axvline(_number(finetune[0]["epoch"]) - 0.5, color=INK, linestyle=":", linewidth=1.2)


def _curve(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of a quantity where it was measured and is finite."""
    points = [(_number(row["epoch"]), _number(row.get(key))) for row in rows]
    points = [point for point in points if math.isfinite(point[1])]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _number(value: float | int | None) -> float:
    return math.nan if value is None else float(value)


def cluster_sizes(sizes: NDArray[np.int64], path: Path) -> None:
    """Write the number of images in each cluster as bars, the largest on top.

    Args:
        sizes: (K,) images in each cluster.
        path: the PNG file.
    """
    save(sizes_figure(sizes), path)


def sizes_figure(sizes: NDArray[np.int64]) -> Figure:
    """The figure of `cluster_sizes`; bars under a tenth of the mean are orange."""
    clusters, mean = len(sizes), float(sizes.mean())
    named = clusters <= MOST_NAMED_BARS
    order = np.argsort(-sizes, kind="stable")
    figure = Figure(figsize=(8, 1.3 + clusters * (0.25 if named else 0.045)), layout="constrained")
    axes = figure.subplots()
    tidy(axes, f"Images per cluster: {sizes.max():,} in the largest, {sizes.min():,} in the smallest", pad=26)
    colours = [ORANGE if sizes[cluster] < FEW * mean else BLUE for cluster in order]
    bars = axes.barh(np.arange(clusters), sizes[order], color=colours, height=0.8)
    axes.axvline(mean, color=INK, linestyle="--", linewidth=1.2, label=f"mean {mean:,.4g}")
    if ORANGE in colours:
        axes.barh([0], [0], color=ORANGE, label="under a tenth of the mean")
    legend_above(axes)
    axes.set_ylim(clusters - 0.4, -0.6)
    axes.set_xlabel("images")
    if named:
        texts = axes.bar_label(bars, [f"{size:,}" for size in sizes[order]], padding=3, fontsize=9, color=INK)
        for text in texts:  # readable on the line of the mean, too
            text.set_path_effects([HALO])
        axes.set_yticks(np.arange(clusters), [str(cluster) for cluster in order], fontsize=9)
        axes.set_ylabel("cluster")
        axes.set_xlim(0, 1.1 * max(int(sizes.max()), 1))
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{clusters} clusters")
    return figure


def confusion(table: NDArray[np.int64], class_names: list[str], cluster_numbers: list[int], path: Path) -> None:
    """Write how the images of each class spread over the clusters.

    Args:
        table: (classes, clusters) counts, the columns in the order to show.
        class_names: name of each row.
        cluster_numbers: number of each column.
        path: the PNG file.
    """
    save(confusion_figure(table, class_names, cluster_numbers), path)


def confusion_figure(table: NDArray[np.int64], class_names: list[str], cluster_numbers: list[int]) -> Figure:
    """The figure of `confusion`: shade is the share of the class, the text in a cell the number of images."""
    rows, columns = table.shape
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    counted = columns <= MOST_COUNTED_COLUMNS
    cell = 0.46 if counted else 0.16
    figure = Figure(
        figsize=(np.clip(columns * cell + 2.8, 6, 14), np.clip(rows * min(cell, 0.4) + 1.6, 3.2, 14)),
        layout="constrained",
    )
    axes = figure.subplots()
    tidy(axes, "Where the images of each class went" + (" (numbers are images)" if counted else ""))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    figure.colorbar(image, label="share of the class", shrink=min(1.0, 4 / figure.get_figheight()))
    row_step, column_step = -(-rows // MOST_TICKS), -(-columns // MOST_TICKS)
    axes.set_yticks(range(0, rows, row_step), [shorten(name) for name in class_names[::row_step]])
    axes.set_xticks(range(0, columns, column_step), [str(number) for number in cluster_numbers[::column_step]])
    axes.tick_params(length=0, labelsize=9 if max(rows, columns) <= MOST_COUNTED_COLUMNS else 7)
    axes.set_xlabel("cluster")
    axes.set_ylabel("class")
    if counted:
        for row, column in np.argwhere(table > 0):
            colour = "white" if shares[row, column] > 0.55 else INK
            text = f"{table[row, column]}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    return figure


def embedding_map(points: NDArray[np.float32], clusters: NDArray[np.int64], path: Path) -> None:
    """Write a map of the images, coloured and numbered by cluster.

    Args:
        points: (N, 2) places of the images.
        clusters: (N,) the cluster of each.
        path: the PNG file.
    """
    save(map_figure(points, clusters), path)


def map_figure(points: NDArray[np.float32], clusters: NDArray[np.int64]) -> Figure:
    """The figure of `embedding_map`: each cluster's number stands at the median of its points."""
    numbers, members = np.unique(clusters, return_inverse=True)
    medians = np.stack([np.median(points[clusters == number], axis=0) for number in numbers])
    colours = np.array(map_colours(medians))
    order = np.random.default_rng(0).permutation(len(points))  # else the last cluster covers the others
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    tidy(axes, "Map of the images: what lies close looks alike to the network; numbers are clusters")
    axes.scatter(
        points[order, 0],
        points[order, 1],
        c=colours[members[order]],
        s=float(np.clip(30_000 / len(points), 1.5, 30)),
        alpha=0.65,
        linewidths=0,
    )
    font_size = 12 if len(numbers) <= 30 else 8 if len(numbers) <= 100 else 6.5
    for number, (x, y) in zip(numbers, medians, strict=True):
        text = axes.text(x, y, str(number), ha="center", va="center", fontsize=font_size, weight="bold")
        text.set_path_effects([HALO])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def map_colours(medians: NDArray[np.float32]) -> list[str]:
    """A colour for each of (K, 2) cluster medians; where colours must repeat, they do so far apart."""
    chosen: list[int] = []
    for cluster, median in enumerate(medians):
        distances = np.linalg.norm(medians[:cluster] - median, axis=1)
        nearest = [
            min(distances[np.array(chosen, dtype=int) == colour], default=np.inf)
            for colour in range(len(CLUSTER_COLOURS))
        ]
        chosen.append(int(np.argmax(nearest)))
    return [CLUSTER_COLOURS[colour] for colour in chosen]


def gallery(
    images: Pixels,
    order: list[list[int]],
    path: Path,
) -> None:
    """Write one row of the most typical images per cluster, of the first 30 clusters at most.

    Args:
        images: (N, H, W, 3) uint8.
        order: for each cluster the indices of its images, the most typical first; empty for an empty one.
        path: the PNG file.
    """
    save(gallery_figure(images, order), path)


def gallery_figure(images: Pixels, order: list[list[int]]) -> Figure:
    """The figure of `gallery`, one pixel of the tiles to a pixel of the file."""
    shown, left_out = order[:MOST_GALLERY_ROWS], len(order) - MOST_GALLERY_ROWS
    canvas = montage(images, shown)
    height, width = canvas.shape[:2]
    left, top, bottom = 24 + 11 * len(str(len(shown) - 1)), 56, 40 if left_out > 0 else 10
    full_width, full_height = max(left + width + 10, 620), top + height + bottom
    figure = Figure(figsize=(full_width / DPI, full_height / DPI))
    axes = figure.add_axes((left / full_width, bottom / full_height, width / full_width, height / full_height))
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    figure.text(
        10 / full_width,
        1 - 18 / full_height,
        "The most typical images of each cluster",
        va="top",
        weight="bold",
        fontsize=11,
        color=INK,
    )
    for row in range(len(shown)):
        centre = (row + 0.5) * height / len(shown) - GAP / 2
        axes.text(-10, centre, str(row), ha="right", va="center", fontsize=10, color=INK)
        if not shown[row]:
            axes.text(0, centre, "no images", va="center", fontsize=9, color=INK)
    if left_out > 0:
        note = f"{left_out} more clusters are not shown here"
        figure.text(10 / full_width, 12 / full_height, note, fontsize=9, color=INK)
    return figure


def montage(images: Pixels, order: list[list[int]]) -> Pixels:
    """Tiles on white, (height, width, 3) uint8: a row of tiles per list of indices."""
    height, width = tile_size(*images.shape[1:3])
    columns = max(1, *map(len, order)) if order else 1
    canvas = np.full((max(len(order), 1) * (height + GAP), columns * (width + GAP), 3), 255, dtype=np.uint8)
    for row, indices in enumerate(order):
        for column, index in enumerate(indices):
            y, x = row * (height + GAP), column * (width + GAP)
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


def tidy(axes: Axes, title: str, pad: float = 10) -> None:
    """Give a panel its title and only the spines that carry an axis."""
    axes.set_title(title, loc="left", fontsize=11, weight="bold", color=INK, pad=pad)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def legend_above(axes: Axes) -> None:
    """A legend between title and panel, where it covers no data; the title needs a pad of 26 points."""
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(-0.01, 1), borderaxespad=0.2)


def shorten(name: str, length: int = 24) -> str:
    """A name for a tick: on one line, of bounded length, and of characters that matplotlib draws as they are."""
    name = " ".join(name.split()).replace("$", r"\$").encode(errors="replace").decode()
    return name if len(name) <= length else name[: length - 1] + "…"


def save(figure: Figure, path: Path) -> None:
    """Write a figure without the date or the library's version: the same run gives the same file."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
