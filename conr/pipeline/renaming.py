"""New names of clusters: the table of names is changed, and every result that shows names is written again."""

import warnings
from collections.abc import Mapping

from conr.errors import Note, UserError
from conr.files import load_table, write_table, write_text
from conr.pipeline.clusterer import rename_in_clusterer
from conr.pipeline.exports import rename_in_parquet
from conr.pipeline.naming import (
    AGAIN,
    COLUMNS,
    LINE,
    load_clusters,
    names_line,
    problem_of,
    read_rows,
    usable_names,
)
from conr.pipeline.workspace import Workspace, writes
from conr.report.page_names import rename_in_page
from conr.text import no_formula


@writes
def name_clusters(workspace: Workspace, names: Mapping[int, str] | None = None) -> dict[int, str]:
    """Change names of clusters, and show in the results what the table of names says.

    The tables of assignments, clusterer.onnx, the page and the summary are written again; nothing is computed. The
    table of names gets a row for every cluster of this clustering, to be filled in; rows of other clusterings stay.

    Args:
        workspace: of a finished run.
        names: number of a cluster → its new name, empty for none.

    Returns:
        The names of all clusters that have one.

    Raises:
        UserError: there is no finished run or no such cluster, a name cannot be one, or the table cannot be read.
    """
    found = load_clusters(workspace)
    clustering, changes = found.identity, {number: name.strip() for number, name in (names or {}).items()}
    for number, name in changes.items():
        if not 0 <= number < found.count:
            raise UserError(f"there is no cluster {number}; they are 0 to {found.count - 1}")
        if problem := problem_of(name):
            raise UserError(f"cluster {number} cannot have the name {name}: {problem}")
    table = read_rows(workspace)
    own = usable_names(workspace, [row for row in table if row["clustering"] == clustering], found.count) | changes
    own = {number: name for number, name in sorted(own.items()) if name}
    rows = [[row[column] for column in COLUMNS] for row in table if row["clustering"] != clustering]
    rows += [[clustering, str(number), own.get(number, "")] for number in range(found.count)]
    write_table(workspace.names, COLUMNS, rows)
    _show(workspace, own)
    return own


def _show(workspace: Workspace, names: Mapping[int, str]) -> None:
    """Write again what shows names."""
    rows = load_table(workspace.assignments, AGAIN, errors="surrogateescape")
    columns = [column for column in rows[0] if column != "name"] + ["name"] * bool(names)
    for row in rows:
        row["name"] = no_formula(names.get(int(row["cluster"]), ""))
    cells = ([row[column] for column in columns] for row in rows)
    write_table(workspace.assignments, columns, cells, errors="surrogateescape")
    if workspace.explorable.exists():
        rename_in_parquet(workspace.explorable, names)
    if workspace.clusterer.exists():
        rename_in_clusterer(workspace.clusterer, names)
    if workspace.report.exists() and not rename_in_page(workspace.report, names):
        message = (
            f"{workspace.report} is of an older version of conr: it shows the names after conr evaluate, or dvc repro"
        )
        warnings.warn(Note(message), stacklevel=2)
    if workspace.summary.exists():
        lines = workspace.summary.read_text(encoding="utf-8").splitlines()
        lines = [line for line in lines if not line.startswith(LINE)] + names_line(names)
        write_text(workspace.summary, "\n".join(lines) + "\n", "backslashreplace")
