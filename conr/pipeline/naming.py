"""Names of clusters: a table that people write, which counts only for the clustering that it was written for."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conr.data.store import load_manifest
from conr.errors import Note, UserError
from conr.files import load_array, load_table, write_table, write_text
from conr.pipeline.clusterer import rename_in_clusterer
from conr.pipeline.exports import rename_in_parquet
from conr.pipeline.workspace import Workspace, writes
from conr.report.page_names import rename_in_page
from conr.text import no_formula, printable

COLUMNS = ["clustering", "cluster", "name"]
LONGEST = 100  # characters of a name, which becomes part of a folder's name
AGAIN = "run conr evaluate, or dvc repro"
LINE = "names        "  # of the summary


@dataclass(frozen=True)
class Clusters:
    """The clusters of a finished run.

    Attributes:
        files: the N images' names.
        clusters: (N,) int64.
        count: how many clusters hold images.
    """

    files: Sequence[str]
    clusters: NDArray[np.int64]
    count: int

    @property
    def identity(self) -> str:
        """As of `identity_of`."""
        return identity_of(self.files, self.clusters)


def identity_of(files: Sequence[str], clusters: NDArray[np.int64]) -> str:
    """A short text that differs where any image is in another cluster, or a cluster has another number."""
    digest = hashlib.sha256(np.asarray(clusters, "<i8").tobytes())
    digest.update("\0".join(files).encode(errors="surrogateescape"))
    return f"c-{digest.hexdigest()[:12]}"  # with a letter in front: a spreadsheet would take 12e45 for a number


def load_clusters(workspace: Workspace) -> Clusters:
    """The clusters of a finished run.

    Raises:
        UserError: there is none, or a part of it is damaged or of another one.
    """
    files, path = load_manifest(workspace.store).files, workspace.assignments
    rows = load_table(path, AGAIN, errors="surrogateescape")
    try:
        clusters = np.array([int(row["cluster"]) for row in rows], np.int64)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged (its column cluster is missing or holds no numbers); {AGAIN}") from error
    count = len(load_array(workspace.centroids, AGAIN))
    if [row["file"] for row in rows] != list(map(no_formula, files)):
        raise UserError(f"{path} is not of the images in {workspace.store}; {AGAIN}")
    if not set(clusters.tolist()) <= set(range(count)):
        raise UserError(f"{path} and {workspace.centroids} do not match; {AGAIN}")
    return Clusters(files, clusters, count)


def read_names(workspace: Workspace, clustering: str, count: int) -> dict[int, str]:
    """The names of the clusters of a clustering, by their numbers; what the table says that cannot be used is a note.

    Names of another clustering are not used: its numbers may mean something else.

    Args:
        workspace: whose table is read; without one there are no names.
        clustering: identity of the present clustering.
        count: its number of clusters.
    """
    try:
        rows = _rows(workspace)
    except UserError as error:
        _note(f"{error}. No names are shown")
        return {}
    own = [row for row in rows if row["clustering"] == clustering]
    others = [row["clustering"] for row in rows if row["name"]]
    if others and not own:
        _note(
            f"{workspace.names} names clusters of another clustering ({others[-1]}), not of this one ({clustering}): "
            "no names are shown. conr name adds rows for it"
        )
    return _usable(workspace, own, count)


def present_names(workspace: Workspace) -> dict[int, str]:
    """The names of the clusters of a finished run.

    Raises:
        UserError: there is a table of names but no finished run.
    """
    if not workspace.names.exists():
        return {}
    found = load_clusters(workspace)
    return read_names(workspace, found.identity, found.count)


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
        if problem := _problem(name):
            raise UserError(f"cluster {number} cannot have the name {name}: {problem}")
    table = _rows(workspace)
    own = _usable(workspace, [row for row in table if row["clustering"] == clustering], found.count) | changes
    own = {number: name for number, name in sorted(own.items()) if name}
    rows = [[row[column] for column in COLUMNS] for row in table if row["clustering"] != clustering]
    rows += [[clustering, str(number), own.get(number, "")] for number in range(found.count)]
    write_table(workspace.names, COLUMNS, rows)
    _show(workspace, own)
    return own


def names_line(names: Mapping[int, str]) -> list[str]:
    """The line of the summary that lists the names; none where there are none."""
    return [LINE + ", ".join(f"{number} {name}" for number, name in sorted(names.items()))] if names else []


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
        _note(
            f"{workspace.report} is of an older version of conr: it shows the names after conr evaluate, or dvc repro"
        )
    if workspace.summary.exists():
        lines = workspace.summary.read_text(encoding="utf-8").splitlines()
        lines = [line for line in lines if not line.startswith(LINE)] + names_line(names)
        write_text(workspace.summary, "\n".join(lines) + "\n", "backslashreplace")


def _rows(workspace: Workspace) -> list[dict[str, str]]:
    """The rows of the table of names, without what stands around their cells.

    Raises:
        UserError: it is no such table.
    """
    path = workspace.names
    if not path.exists():
        return []
    rows = load_table(path, "repair or delete it", separators=",;\t")
    if rows and not set(COLUMNS) <= set(rows[0]):
        raise UserError(f"{path} has the columns {', '.join(rows[0])}, not {', '.join(COLUMNS)}; repair or delete it")
    return [{column: cell.strip() for column, cell in row.items()} for row in rows]


def _usable(workspace: Workspace, rows: Sequence[Mapping[str, str]], count: int) -> dict[int, str]:
    """The names in the rows of one clustering; what cannot be used is a note."""
    found: dict[int, str] = {}
    for row in rows:
        number, name = row["cluster"], row["name"]
        if not name:
            continue
        problem = _problem(name)
        if not number.isdecimal() or int(number) >= count:
            problem = f"there is no such cluster; they are 0 to {count - 1}"
        elif int(number) in found:
            problem = f"it has a name already, {found[int(number)]}"
        if problem:
            _note(f"{workspace.names}: the name {name} of cluster {number} is not used: {problem}")
        else:
            found[int(number)] = name
    return found


def _problem(name: str) -> str:
    """Why a text cannot be a name; empty if it can."""
    if name != printable(name):
        return "it has characters that cannot be shown"
    return f"it has {len(name)} characters, of at most {LONGEST}" if len(name) > LONGEST else ""


def _note(text: str) -> None:
    warnings.warn(Note(text), stacklevel=3)
