"""Names of clusters: a table that people write, which counts only for the clustering that it was written for.

New images are assigned with names, so this module needs nothing that only clustering needs; `renaming` changes names.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conr.data.store import load_manifest
from conr.errors import Note, UserError
from conr.files import load_array, load_table
from conr.pipeline.workspace import Workspace
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
        rows = read_rows(workspace)
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
    return usable_names(workspace, own, count)


def present_names(workspace: Workspace) -> dict[int, str]:
    """The names of the clusters of a finished run.

    Raises:
        UserError: there is a table of names but no finished run.
    """
    if not workspace.names.exists():
        return {}
    found = load_clusters(workspace)
    return read_names(workspace, found.identity, found.count)


def names_line(names: Mapping[int, str]) -> list[str]:
    """The line of the summary that lists the names; none where there are none."""
    return [LINE + ", ".join(f"{number} {name}" for number, name in sorted(names.items()))] if names else []


def read_rows(workspace: Workspace) -> list[dict[str, str]]:
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


def usable_names(workspace: Workspace, rows: Sequence[Mapping[str, str]], count: int) -> dict[int, str]:
    """The names in the rows of one clustering; what cannot be used is a note."""
    found: dict[int, str] = {}
    for row in rows:
        number, name = row["cluster"], row["name"]
        if not name:
            continue
        problem = problem_of(name)
        if not number.isdecimal() or int(number) >= count:
            problem = f"there is no such cluster; they are 0 to {count - 1}"
        elif int(number) in found:
            problem = f"it has a name already, {found[int(number)]}"
        if problem:
            _note(f"{workspace.names}: the name {name} of cluster {number} is not used: {problem}")
        else:
            found[int(number)] = name
    return found


def problem_of(name: str) -> str:
    """Why a text cannot be a name; empty if it can."""
    if name != printable(name):
        return "it has characters that cannot be shown"
    return f"it has {len(name)} characters, of at most {LONGEST}" if len(name) > LONGEST else ""


def _note(text: str) -> None:
    warnings.warn(Note(text), stacklevel=3)
