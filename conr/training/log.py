"""The log of a training stage: one row per epoch, as CSV."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from conr.errors import UserError
from conr.files import load_table, write_table

REMEDY = "run its stage again"

Row = dict[str, float | int | str | None]


def write_log(path: Path, rows: Sequence[Mapping[str, float | str | None]], empty: Sequence[str] = ()) -> None:
    """Write a training log; a value that a row lacks stays empty. Without any row it has the columns of `empty`."""
    columns = list(dict.fromkeys(name for row in rows for name in row)) or empty
    write_table(path, columns, ([row.get(name) for name in columns] for row in rows))


def read_log(path: Path) -> list[dict[str, float]]:
    """Read the numbers of what `write_log` wrote; empty values and the list of cluster sizes are left out.

    Raises:
        UserError: the file is missing or damaged.
    """
    rows = load_table(path, REMEDY)
    try:
        return [{name: float(text) for name, text in row.items() if text and name != "cluster_sizes"} for row in rows]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {REMEDY}") from error
