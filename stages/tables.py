"""Tables: which cluster each image is in, as a file; and rows of text for the console."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.evaluation import Placement
from conr.files import atomic_file

COLUMNS = ("file", "cluster", "own_distance", "next_cluster", "next_distance", "boundary_ratio")


def write_assignments(
    path: Path, files: Sequence[str], placement: Placement, labels: Sequence[str] | None = None
) -> None:
    """Write a row an image: its file, its cluster, its distances, its label if there are any."""
    columns = [
        files,
        placement.assignments,
        _decimals(placement.own_distance),
        placement.next_cluster,
        _decimals(placement.next_distance),
        _decimals(placement.boundary_ratio),
    ]
    if labels is not None:
        columns.append(labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_file(path) as temporary,
        # Names on disk are bytes: one that is not UTF-8 goes out as it came in.
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS if labels is None else (*COLUMNS, "label"))
        writer.writerows(zip(*columns, strict=True))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text: the first cell of each row on the left, the others under each other on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        name.ljust(widths[0]) + "".join(cell.rjust(width + 3) for cell, width in zip(cells, widths[1:], strict=True))
        for name, *cells in rows
    ]


def _decimals(values: NDArray[np.float32]) -> list[str]:
    return [f"{value:.4f}" for value in values]
