"""The table that says which cluster each image is in."""

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


def _decimals(values: NDArray[np.float32]) -> list[str]:
    return [f"{value:.4f}" for value in values]
