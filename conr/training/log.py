"""The log of a training stage: a row an epoch, kept as CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path

from conr.files import atomic_file

Row = dict[str, float | int | str | None]


def write_log(path: Path, rows: Sequence[Row]) -> None:
    """Write a training log as CSV; a value that a row lacks stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_log(path: Path) -> list[dict[str, float]]:
    """Read the numbers of what `write_log` wrote; empty values and the list of cluster sizes are left out."""
    with path.open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value and name != "cluster_sizes"}
            for row in csv.DictReader(file)
        ]
