"""The paper's own figures, drawn from a run: neighbours (Fig. 1b), purity (Fig. 2), sweeps and curves (Fig. 3).

As in `conr.report.figures`, each has a function that builds it and one that writes it, and no colour carries a
meaning alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from conr.neighbour_study import PurityCurves, Retrieval, Verdict
from conr.report.figures import (
    BLUE,
    DPI,
    FAINT,
    FEW_POINTS,
    GREEN,
    INK,
    NAMES,
    ORANGE,
    PINK,
    Pixels,
    Row,
    legend_above,
    resize,
    save,
    shorten,
    tidy,
    tile_size,
)

RED, GREY = "#C8102E", "#777777"
STYLES = (
    (BLUE, "-", "o"),
    (ORANGE, "--", "s"),
    (GREEN, "-.", "^"),
    (PINK, ":", "D"),
    ("#882255", "-", "v"),
    ("#56B4E9", "--", "X"),
    ("#E69F00", "-.", "P"),
    ("#332288", ":", "*"),
)
SCORES = ("acc", "nmi", "ari")

# The frame of a neighbour: colour, line style, the mark in its corner, and what it means.
FRAMES: dict[Verdict, tuple[str, str, str, str]] = {
    "wrong": (RED, "--", "×", "other class"),
    "hard positive": (GREEN, "-", "+", "hard positive: same class, not in the row above"),
    None: (GREY, ":", "?", "unknown"),
}
TILE_GAP, QUERY_GAP, TITLE_WIDTH = 18, 20, 112  # pixels
MARK = 17  # pixels: the edge of the mark in a frame's corner


def neighbour_purity(curves: PurityCurves, path: Path) -> None:
    """Write the purity of the K nearest neighbours against K (Fig. 2).

    Args:
        curves: purity of the Euclidean neighbours, of ConAff, and of ConAff with the boundary filter.
        path: the PNG file.
    """
    save(purity_figure(curves), path)


def purity_figure(curves: PurityCurves) -> Figure:
    """The figure of `neighbour_purity`, in percent as in the paper."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    tidy(axes, "How many of the K nearest neighbours show the same class", pad=26)
    axes.grid(color=FAINT, linewidth=0.8)
    named = {"Euclidean": curves.local, "ConAff": curves.conaff, "ConAff, boundary filter": curves.conaff_filtered}
    for (name, values), (colour, line, marker) in zip(named.items(), STYLES, strict=False):
        axes.plot(
            curves.neighbours,
            100 * values,
            color=colour,
            linestyle=line,
            linewidth=2,
            marker=marker,
            markersize=5,
            markevery=(0.02, 0.1),
            label=name,
        )
    axes.set_xlabel("K, nearest neighbours of an image")
    axes.set_ylabel("purity, %")
    axes.set_xlim(0, curves.neighbours[-1] + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    legend_above(axes)
    return figure


def neighbours(
    images: Pixels, retrievals: Sequence[Retrieval], path: Path, query_names: Sequence[str] | None = None
) -> None:
    """Write queries with their nearest images by Euclidean distance and by ConAff (Fig. 1b).

    Args:
        images: (N, H, W, 3) uint8 that the retrievals index.
        retrievals: the queries from top to bottom.
        path: the PNG file.
        query_names: what stands below each query, such as its class.
    """
    save(neighbours_figure(images, retrievals, query_names), path)


def neighbours_figure(
    images: Pixels, retrievals: Sequence[Retrieval], query_names: Sequence[str] | None = None
) -> Figure:
    """The figure of `neighbours`, one pixel of the tiles to a pixel of the file.

    A wrong neighbour has a dashed red frame and a cross, a hard positive a green one and a plus; one whose label, or
    that of the query, is unknown a dotted grey one and a question mark. Without any label there are no frames.
    """
    height, width = tile_size(*images.shape[1:3])
    most = max((len(retrieval.local) for retrieval in retrievals), default=1)
    verdicts = {verdict for item in retrievals for verdict in (*item.local_verdicts, *item.conaff_verdicts)}
    framed = {verdict: frame for verdict, frame in FRAMES.items() if verdict in verdicts and verdicts != {None}}
    left, top = 16 + max(width, 64) + TITLE_WIDTH, 108
    step = height + TILE_GAP
    block = 2 * step + QUERY_GAP
    full_width = max(left + most * (width + TILE_GAP) + 6, 840)
    full_height = top + len(retrievals) * block
    canvas = np.full((full_height, full_width, 3), 255, dtype=np.uint8)

    figure = Figure(figsize=(full_width / DPI, full_height / DPI))
    axes = figure.add_axes((0, 0, 1, 1))
    for number, item in enumerate(retrievals):
        y = top + number * block
        query_y = y + step - TILE_GAP // 2 - height // 2
        canvas[query_y : query_y + height, 16 : 16 + width] = resize(images[item.query], height, width)
        if query_names is not None:
            room = (left - 98) // 9  # characters; two lines, or a name would reach the word ConAff
            name = "\n".join(wrap(shorten(query_names[number], 2 * room), room, max_lines=2, placeholder="…"))
            axes.text(16, query_y + height + 3, name, va="top", fontsize=8.5, linespacing=1, color=INK)
        rows = (("Euclidean", item.local, item.local_verdicts), ("ConAff", item.conaff, item.conaff_verdicts))
        for row, (title, found, judged) in enumerate(rows):
            row_y = y + row * step
            axes.text(left - 14, row_y + height / 2, title, ha="right", va="center", fontsize=9.5, color=INK)
            for column, (index, verdict) in enumerate(zip(found, judged, strict=True)):
                x = left + column * (width + TILE_GAP)
                canvas[row_y : row_y + height, x : x + width] = resize(images[index], height, width)
                if verdict in framed:
                    _frame(axes, verdict, x, row_y, width, height)
        if number:
            axes.plot([16, full_width - 16], [y - TILE_GAP / 2 - QUERY_GAP / 2] * 2, color=FAINT, linewidth=1)
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    title = f"The {most} nearest images by Euclidean distance and by ConAff"
    axes.text(16, 18, title, va="top", weight="bold", fontsize=11, color=INK)
    _explain_frames(axes, list(framed), known=verdicts != {None})
    return figure


def _frame(axes: Axes, verdict: Verdict, x: float, y: float, width: float, height: float) -> None:
    """Frame a tile by its verdict, around its pixels, not on them."""
    colour, line, mark, _ = FRAMES[verdict]
    corner = (x - 3.5, y - 3.5)
    axes.add_patch(Rectangle(corner, width + 6, height + 6, fill=False, edgecolor=colour, linestyle=line, linewidth=2))
    badge = (x + width + 9 - MARK, y - 10)  # mostly beside the tile: a small image must stay visible
    axes.add_patch(Rectangle(badge, MARK, MARK, facecolor=colour, edgecolor="none"))
    centre = badge[0] + MARK / 2, badge[1] + MARK / 2
    axes.text(*centre, mark, color="white", weight="bold", fontsize=9, ha="center", va="center_baseline")


def _explain_frames(axes: Axes, shown: Sequence[Verdict], known: bool) -> None:
    """The legend under the title: a small frame beside each meaning."""
    if not known:
        axes.text(16, 62, "Without labels nobody knows which are right.", va="center", fontsize=9.5, color=INK)
    x = 20.0
    for verdict in shown:
        meaning = FRAMES[verdict][-1]
        _frame(axes, verdict, x, 50, 26, 26)
        axes.text(x + 40, 63, meaning, va="center", fontsize=9.5, color=INK)
        x += 76 + 9 * len(meaning)


def sweep(runs: Sequence[Row], parameter: str, path: Path) -> None:
    """Write scores against one parameter (Fig. 3a).

    Args:
        runs: a row a run: the parameter's value and any of acc, nmi and ari. Rows of one value are its repeats.
        parameter: key of the parameter.
        path: the PNG file.
    """
    save(sweep_figure(runs, parameter), path)


def sweep_figure(runs: Sequence[Row], parameter: str) -> Figure:
    """The figure of `sweep`: means, in percent, with error bars of one standard deviation.

    The values stand at equal distances, so that 5, 10, 20, 100 can all be read.
    """
    tried = _tried(runs, parameter)
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    tidy(axes, f"Scores against {shorten(parameter, 40)}{_repeats(runs, [parameter])}", pad=26)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    for place, (score, (colour, line, marker)) in enumerate(zip(SCORES, STYLES, strict=False)):
        results = [_values(runs, {parameter: value}, score) for value in tried]
        shown = [position for position, values in enumerate(results) if len(values)]
        if not shown:
            continue
        means = [float(results[position].mean()) for position in shown]
        deviations = [_deviation(results[position]) for position in shown]
        positions = np.array(shown) + 0.05 * (place - 1)  # beside each other, or error bars hide one another
        axes.errorbar(
            positions, means, deviations, color=colour, linestyle=line, marker=marker, capsize=4, label=NAMES[score]
        )
    axes.set_xticks(range(len(tried)), [f"{value:g}" for value in tried])
    axes.set_xlim(-0.4, len(tried) - 0.6)
    axes.set_xlabel(shorten(parameter, 60))
    axes.set_ylabel("%")
    legend_above(axes)
    return figure


def pair_sweep(runs: Sequence[Row], first: str, second: str, path: Path, score: str = "acc") -> None:
    """Write a score against a pair of parameters, such as k1 and k2 (Fig. 3b).

    Args:
        runs: a row a run: the values of both parameters and the score. Rows of one pair are its repeats.
        first: key of the parameter of the rows.
        second: key of the parameter of the columns.
        path: the PNG file.
        score: key of the score.
    """
    save(pair_sweep_figure(runs, first, second, score), path)


def pair_sweep_figure(runs: Sequence[Row], first: str, second: str, score: str = "acc") -> Figure:
    """The figure of `pair_sweep`: a heat map of the means in percent; pairs that were not tried stay white."""
    down, across = _tried(runs, first), _tried(runs, second)
    means, texts = np.full((len(down), len(across)), np.nan), {}
    for row, column in np.ndindex(*means.shape):
        values = _values(runs, {first: down[row], second: across[column]}, score)
        if len(values):
            means[row, column] = values.mean()
            spread = f"\n± {_deviation(values):.1f}" if len(values) > 1 else ""
            texts[row, column] = f"{values.mean():.1f}{spread}"

    size = (np.clip(2.6 + 0.95 * len(across), 6.2, 14), np.clip(1.5 + 0.6 * len(down), 3, 14))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    pair = f"{shorten(first)} and {shorten(second)}"
    tidy(axes, f"{NAMES[score]} against {pair}{_repeats(runs, [first, second])}")
    image = axes.imshow(means, cmap="Blues", aspect="auto", interpolation="nearest")
    dark = np.nanquantile(means, [0, 1]) @ [0.35, 0.65] if texts else 0.0
    figure.colorbar(image, label=f"{NAMES[score]}, %")
    axes.set_xticks(range(len(across)), [f"{value:g}" for value in across])
    axes.set_yticks(range(len(down)), [f"{value:g}" for value in down])
    axes.tick_params(length=0)
    axes.set_xlabel(shorten(second, 60))
    axes.set_ylabel(shorten(first, 60))
    for (row, column), text in texts.items():
        colour = "white" if means[row, column] > dark else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    return figure


def score_curves(logs: Mapping[str, Sequence[Sequence[Row]]], path: Path, score: str = "acc") -> None:
    """Write a score against the epoch for several runs, such as BYOL alone and ConNR (Fig. 3c).

    Args:
        logs: for each run's name the logs of its seeds: rows with an epoch and, where measured, the score.
        path: the PNG file.
        score: key of the score.
    """
    save(score_curves_figure(logs, score), path)


def score_curves_figure(logs: Mapping[str, Sequence[Sequence[Row]]], score: str = "acc") -> Figure:
    """The figure of `score_curves`: the mean over the seeds in percent, in a band of one standard deviation."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    several = any(len(seeds) > 1 for seeds in logs.values())
    band = ": mean of the seeds, and one standard deviation either way" if several else ""
    tidy(axes, f"{NAMES[score]} during training{band}", pad=26 + 15 * ((len(logs) - 1) // 3))
    axes.grid(color=FAINT, linewidth=0.8)
    for number, (name, seeds) in enumerate(logs.items()):
        colour, line, marker = STYLES[number % len(STYLES)]
        rows = [row for seed in seeds for row in seed]
        epochs = _tried([row for row in rows if _measured(row, score)], "epoch")
        results = [_values(rows, {"epoch": epoch}, score) for epoch in epochs]
        means = np.array([values.mean() for values in results])
        deviations = np.array([_deviation(values) for values in results])
        marker = marker if len(epochs) <= FEW_POINTS else ""
        label = shorten(name, 40)
        axes.plot(epochs, means, color=colour, linestyle=line, linewidth=2, marker=marker, markersize=4, label=label)
        if len(seeds) > 1:
            axes.fill_between(epochs, means - deviations, means + deviations, color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{NAMES[score]}, %")
    legend_above(axes)
    return figure


def _tried(rows: Sequence[Row], key: str) -> list[float]:
    """The different values of a column, sorted."""
    return sorted({value for row in rows if (value := row.get(key)) is not None and np.isfinite(value)})


def _measured(row: Row, score: str) -> bool:
    value = row.get(score)
    return value is not None and bool(np.isfinite(value))


def _values(runs: Sequence[Row], where: Mapping[str, float], score: str) -> NDArray[np.float64]:
    """The score in percent of the runs with these parameters, where it was measured."""
    chosen = [run for run in runs if all(run.get(key) == value for key, value in where.items())]
    return 100 * np.array([run[score] for run in chosen if _measured(run, score)], dtype=np.float64)


def _deviation(values: NDArray[np.float64]) -> float:
    """The sample standard deviation; 0 for a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _repeats(runs: Sequence[Row], parameters: Sequence[str]) -> str:
    """What a title says about repeats: how many runs stand behind a mean."""
    counts = Counter(tuple(run.get(key) for key in parameters) for run in runs).values()
    fewest, most = min(counts, default=1), max(counts, default=1)
    if most == 1:
        return ""
    return f": mean ± standard deviation of {fewest if fewest == most else f'{fewest} to {most}'} runs"
