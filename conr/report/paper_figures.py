"""The paper's own figures, for a run: neighbors (Fig. 1b), purity (Fig. 2), sweeps and curves (Fig. 3).

As in `conr.report.figures`, each function returns a figure, and no meaning depends on color only.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from conr.evaluation.scores import AGREEMENT, SCORES, MeanStd
from conr.neighbors.study import PurityCurves, Retrieval, Verdict
from conr.report import figures
from conr.report.figures import FAINT, GRAY, GREEN, INK, MARGIN, Pixels, Row, legend_above, shorten
from conr.report.fonts import installed_fonts

RED = "#C8102E"
COLORS = figures.BLUE, figures.ORANGE, GREEN, figures.PINK, figures.WINE, figures.SKY, figures.AMBER, figures.INDIGO
STYLES: list[dict[str, Any]] = [
    {"color": color, "linestyle": line, "marker": marker}
    for color, line, marker in zip(COLORS, ("-", "--", "-.", ":") * 2, "os^DvXP*", strict=True)
]

# The frame of a neighbor: color, line style, the mark in its corner, and what it means.
FRAMES: dict[Verdict, tuple[str, str, str, str]] = {
    "wrong": (RED, "--", "×", "other class"),
    "hard positive": (GREEN, "-", "+", "hard positive: same class, not in the row above"),
    None: (GRAY, ":", "?", "unknown"),
}
TILE_GAP, QUERY_GAP, TITLE_WIDTH = 18, 20, 112  # pixels
MARK = 17  # pixels: the edge of the mark in a frame's corner


@installed_fonts()
def purity_figure(curves: PurityCurves) -> Figure:
    """The purity of the K nearest neighbors against K (Fig. 2), in percent as in the paper."""
    figure, axes = _chart("How many of the K nearest neighbors show the same class")
    named = {"Euclidean": curves.local, "ConAff": curves.conaff, "ConAff, boundary filter": curves.conaff_filtered}
    for (name, values), style in zip(named.items(), STYLES, strict=False):
        axes.plot(curves.neighbors, 100 * values, **style, linewidth=2, markersize=5, markevery=(0.02, 0.1), label=name)
    axes.set(xlabel="K, nearest neighbors of an image", ylabel="purity, %", xlim=(0, curves.neighbors[-1] + 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    legend_above(axes)
    return figure


@installed_fonts()
def neighbors_figure(
    images: Pixels, retrievals: Sequence[Retrieval], query_names: Sequence[str] | None = None
) -> Figure:
    """Queries with their nearest images by Euclidean distance and by ConAff (Fig. 1b), pixel by pixel.

    A wrong neighbor has a dashed red frame and a cross, a hard positive a green one and a plus; one whose label, or
    that of the query, is unknown a dotted gray one and a question mark. Without any label there are no frames.

    Args:
        images: (N, H, W, 3) uint8 that the retrievals index.
        retrievals: the queries from top to bottom.
        query_names: the text below each query, such as its class.
    """
    height, width = figures.tile_size(*images.shape[1:3])
    most = max((len(retrieval.local) for retrieval in retrievals), default=1)
    verdicts = {verdict for item in retrievals for verdict in (*item.local_verdicts, *item.conaff_verdicts)}
    framed = {verdict: frame for verdict, frame in FRAMES.items() if verdict in verdicts and verdicts != {None}}
    left, top = MARGIN + max(width, 64) + TITLE_WIDTH, 108
    step = height + TILE_GAP
    block = 2 * step + QUERY_GAP
    tops = [top + number * block for number in range(len(retrievals))]
    query_y = step - (TILE_GAP + height) // 2
    canvas = figures.blank(top + len(retrievals) * block, max(left + most * (width + TILE_GAP) + 6, 840))
    for y, item in zip(tops, retrievals, strict=True):
        rows = figures.montage(images, [item.local, item.conaff], TILE_GAP)
        canvas[y : y + len(rows), left : left + rows.shape[1]] = rows
        query = figures.resize(images[item.query], height, width)
        canvas[y + query_y : y + query_y + height, MARGIN : MARGIN + width] = query

    figure, axes = figures.picture(canvas, f"The {most} nearest images by Euclidean distance and by ConAff")
    for number, (y, item) in enumerate(zip(tops, retrievals, strict=True)):
        if query_names is not None:
            length = (left - 98) // 9  # characters of a line; two lines, or a name would reach the word ConAff
            name = "\n".join(wrap(shorten(query_names[number], 2 * length), length, max_lines=2, placeholder="…"))
            axes.text(MARGIN, y + query_y + height + 3, name, va="top", fontsize=8.5, linespacing=1, color=INK)
        rows_of_tiles = (y, "Euclidean", item.local_verdicts), (y + step, "ConAff", item.conaff_verdicts)
        for row_y, title, judged in rows_of_tiles:
            axes.text(left - 14, row_y + height / 2, title, ha="right", va="center", fontsize=9.5, color=INK)
            for column, verdict in enumerate(judged):
                if verdict in framed:
                    _frame(axes, verdict, left + column * (width + TILE_GAP), row_y, width, height)
        if number:
            ends = MARGIN, canvas.shape[1] - MARGIN
            axes.plot(ends, [y - (TILE_GAP + QUERY_GAP) / 2] * 2, color=FAINT, linewidth=1)
    _explain_frames(axes, list(framed), known=verdicts != {None})
    return figure


def _frame(axes: Axes, verdict: Verdict, x: float, y: float, width: float, height: float) -> None:
    """Frame a tile by its verdict, around its pixels, not on them."""
    color, line, mark, _ = FRAMES[verdict]
    corner = (x - 3.5, y - 3.5)
    axes.add_patch(Rectangle(corner, width + 6, height + 6, fill=False, edgecolor=color, linestyle=line, linewidth=2))
    badge = (x + width + 9 - MARK, y - 10)  # mostly beside the tile: a small image must stay visible
    axes.add_patch(Rectangle(badge, MARK, MARK, facecolor=color, edgecolor="none"))
    center = badge[0] + MARK / 2, badge[1] + MARK / 2
    axes.text(*center, mark, color="white", weight="bold", fontsize=9, ha="center", va="center_baseline")


def _explain_frames(axes: Axes, shown: Sequence[Verdict], known: bool) -> None:
    """The legend under the title: a small frame beside each meaning."""
    if not known:
        axes.text(16, 62, "Without labels, right and wrong are unknown.", va="center", fontsize=9.5, color=INK)
    x = 20.0
    for verdict in shown:
        meaning = FRAMES[verdict][-1]
        _frame(axes, verdict, x, 50, 26, 26)
        axes.text(x + 40, 63, meaning, va="center", fontsize=9.5, color=INK)
        x += 76 + 9 * len(meaning)


@installed_fonts()
def sweep_figure(runs: Sequence[Row], parameter: str) -> Figure:
    """Scores against one parameter (Fig. 3a): means, in percent, with error bars of one standard deviation.

    The values are at equal distances, so that 5, 10, 20, 100 can all be read.

    Args:
        runs: one row per run: the parameter's value and any of acc, nmi and ari. Rows of one value are its repeats.
        parameter: key of the parameter.
    """
    tried = _tried(runs, parameter)
    figure, axes = _chart(f"Scores against {shorten(parameter, 40)}{_repeats(runs, [parameter])}", grid="y")
    for number, (score, style) in enumerate(zip(AGREEMENT, STYLES, strict=False)):
        found = {tried.index(value): result for (value,), result in _results(runs, [parameter], score).items()}
        if found:
            positions = [position + 0.05 * (number - 1) for position in found]  # or error bars would hide one another
            means, stds = zip(*((result.mean, result.std or 0) for result in found.values()), strict=True)
            axes.errorbar(positions, means, stds, **style, capsize=4, label=SCORES[score].title)
    axes.set_xticks(range(len(tried)), [f"{value:g}" for value in tried])
    axes.set(xlim=(-0.4, len(tried) - 0.6), xlabel=shorten(parameter, 60), ylabel="%")
    legend_above(axes)
    return figure


@installed_fonts()
def pair_sweep_figure(runs: Sequence[Row], first: str, second: str, score: str = "acc") -> Figure:
    """A score against a pair of parameters, such as k1 and k2 (Fig. 3b); pairs that were not tried stay white.

    Args:
        runs: one row per run: the values of both parameters and the score. Rows of one pair are its repeats.
        first: key of the parameter of the rows.
        second: key of the parameter of the columns.
        score: key of the score.
    """
    down, across, title = _tried(runs, first), _tried(runs, second), SCORES[score].title
    means, texts = np.full((len(down), len(across)), np.nan), {}
    for (row, column), result in _results(runs, [first, second], score).items():
        cell = down.index(row), across.index(column)
        means[cell] = result.mean
        texts[cell] = f"{result:.1f}".replace(" ± ", "\n± ")
    size = np.clip(2.6 + 0.95 * len(across), 6.2, 14), np.clip(1.5 + 0.6 * len(down), 3, 14)
    pair = f"{shorten(first)} and {shorten(second)}"
    figure, axes = figures.panel(size, f"{title} against {pair}{_repeats(runs, [first, second])}")
    rows, columns = ([f"{value:g}" for value in values] for values in (down, across))
    figure.colorbar(figures.heat_map(axes, means, texts, rows, columns, fontsize=9), label=f"{title}, %")
    axes.set(xlabel=shorten(second, 60), ylabel=shorten(first, 60))
    return figure


@installed_fonts()
def score_curves_figure(logs: Mapping[str, Sequence[Sequence[Row]]], score: str = "acc") -> Figure:
    """A score against the epoch for several runs, such as BYOL and ConNR (Fig. 3c).

    The mean over the seeds in percent, in a band of one standard deviation.

    Args:
        logs: for each run's name the logs of its seeds: rows with an epoch and, where measured, the score.
        score: key of the score.
    """
    title, several = SCORES[score].title, any(len(seeds) > 1 for seeds in logs.values())
    band = ": mean of the seeds, and one standard deviation either way" if several else ""
    figure, axes = _chart(f"{title} during training{band}")
    for number, (name, seeds) in enumerate(logs.items()):
        found = _results([row for seed in seeds for row in seed], ["epoch"], score)
        epochs = [epoch for (epoch,) in found]
        means = np.array([result.mean for result in found.values()])
        stds = np.array([result.std or 0 for result in found.values()])
        style = STYLES[number % len(STYLES)] | ({} if len(epochs) <= figures.FEW_POINTS else {"marker": ""})
        axes.plot(epochs, means, **style, linewidth=2, markersize=4, label=shorten(name, 40))
        if len(seeds) > 1:
            axes.fill_between(epochs, means - stds, means + stds, color=style["color"], alpha=0.18, linewidth=0)
    axes.set(xlabel="epoch", ylabel=f"{title}, %")
    legend_above(axes)
    return figure


def _chart(title: str, grid: Literal["both", "y"] = "both") -> tuple[Figure, Axes]:
    """A figure for curves, with grid lines and a legend."""
    figure, axes = figures.panel((8, 4.6), title)
    axes.grid(axis=grid, color=FAINT, linewidth=0.8)
    return figure, axes


def _tried(rows: Sequence[Row], key: str) -> list[float]:
    """The different values of a column, sorted."""
    return sorted({value for row in rows if (value := row.get(key)) is not None and np.isfinite(value)})


def _results(rows: Sequence[Row], keys: Sequence[str], score: str) -> dict[tuple[float, ...], MeanStd]:
    """A score in percent at each combination of values, in order, where it was measured."""
    found = defaultdict(list)
    table = np.array([[row.get(key) for key in (*keys, score)] for row in rows], dtype=np.float64)
    for *values, measured in table.reshape(-1, len(keys) + 1).tolist():
        if np.isfinite([*values, measured]).all():
            found[tuple(values)].append(measured)
    return {values: MeanStd.of(found[values], scale=100) for values in sorted(found)}


def _repeats(runs: Sequence[Row], parameters: Sequence[str]) -> str:
    """The part of a title about repeats: how many runs a mean is of."""
    counts = Counter(tuple(run.get(key) for key in parameters) for run in runs).values()
    fewest, most = min(counts, default=1), max(counts, default=1)
    if most == 1:
        return ""
    return f": mean ± standard deviation of {fewest if fewest == most else f'{fewest} to {most}'} runs"
