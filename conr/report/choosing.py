"""The figure of how the number of clusters was chosen."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from conr.clustering.choose import BELOW, FROM, Proposal
from conr.report.figures import BLUE, FAINT, FEW_POINTS, GRAY, ORANGE, tidy
from conr.report.fonts import installed_fonts

WIDTH, PANEL_HEIGHT = 8, 1.9  # inches


@installed_fonts()
def choose_figure(proposal: Proposal) -> Figure:
    """The curve of every criterion over the candidates for K, a panel each, the one that decides on top.

    A dot marks what a criterion chooses, the dashed line the proposed K, a dotted one the threshold of a criterion.
    """
    names = sorted(proposal.curves, key=lambda name: name != proposal.criterion)
    figure = Figure(figsize=(WIDTH, 0.7 + PANEL_HEIGHT * len(names)), layout="constrained")
    grid = figure.subplots(len(names), sharex=True, squeeze=False)
    for axes, name in zip(grid[:, 0], names, strict=True):
        _draw_criterion(axes, proposal, name)
    grid[-1, 0].set_xlabel("number of clusters K")
    return figure


def _draw_criterion(axes: Axes, proposal: Proposal, name: str) -> None:
    choice, decides = proposal.choices[name], name == proposal.criterion
    title = f"{name[:1].upper()}{name[1:]}: {'no K' if choice is None else f'K = {choice}'}"
    if decides:
        title += ", proposed" if proposal.clear else ", proposed, but nothing speaks clearly for any K"
    tidy(axes, title)
    axes.grid(color=FAINT, linewidth=0.8)
    values = np.array([np.nan if value is None else value for value in proposal.curves[name]])
    marker = "." if len(values) <= FEW_POINTS else ""
    axes.plot(proposal.candidates, values, color=BLUE if decides else GRAY, marker=marker, linewidth=1.8)
    if (threshold := (BELOW | FROM).get(name)) is not None:
        axes.axhline(threshold, color=GRAY, linestyle=":", linewidth=1.2)
    axes.axvline(proposal.clusters, color=ORANGE, linestyle="--", linewidth=1.2)
    if choice is not None:
        axes.plot([choice], [values[proposal.candidates.index(choice)]], "o", color=ORANGE, markersize=7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
