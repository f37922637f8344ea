"""Results for other programs: the table of assignments as Parquet, with thumbnails, a map and neighbors."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from conr.data.images import ImageSource
from conr.evaluation.assignment import Assignment
from conr.files import atomic_file
from conr.observer import SILENT, Observer

ROWS = 4096  # of a row group: so many thumbnails are in memory at a time
EDGE = 64  # pixels of a thumbnail's longest edge
PIXELATED_BELOW = 32  # smaller images stay exact: JPEG would smear them, and PNG takes no more
QUALITY = 80  # of JPEG
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NEIGHBORS = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])


def write_parquet(
    path: Path,
    files: Sequence[str],
    assignment: Assignment,
    images: ImageSource,
    *,
    labels: Sequence[str] | None = None,
    names: Mapping[int, str] | None = None,
    positions: NDArray[np.float32] | None = None,
    embeddings: NDArray[np.float32] | None = None,
    neighbors: NDArray[np.int64] | None = None,
    observer: Observer = SILENT,
) -> None:
    """Write one row per image as Parquet, in the form that Embedding Atlas and similar explorers open.

    The columns are those of `Assignment.table`, and `image` (struct<bytes, path>: JPEG or PNG of at most 64 pixels, and
    the file) and `neighbors` (struct<ids, distances>: numbers of rows from 0, Euclidean distances of the unit vectors).
    A cell is null where nothing is known: a label, a name, a position that is not finite. A file name that is no UTF-8
    is written with escapes. Memory does not grow with the number of images.

    Args:
        path: the .parquet file.
        files: the N names.
        assignment: of the N images.
        images: (N, S, S, 3) uint8, memory-mapped or not, or in shards.
        labels: the N labels, empty where unknown; or None for no such column.
        names: those of clusters that have one; empty or None for no such column.
        positions: (N, 2) on the map; or None for no columns x and y.
        embeddings: (N, D) unit vectors, from which the neighbors' distances are computed.
        neighbors: (N, k) int64, the nearest other images of each; or None for no such column.
        observer: notified of every row group.

    Raises:
        ValueError: neighbors without embeddings.
    """
    if neighbors is not None and embeddings is None:
        raise ValueError("neighbors need the embeddings, which their distances are computed from")
    scalars = _scalars(files, assignment, labels, names, positions)
    fields = [(name, column.type) for name, column in scalars.items()]
    fields += [("image", IMAGE), *([] if neighbors is None else [("neighbors", NEIGHBORS)])]
    schema = pa.schema(fields)
    with (
        atomic_file(path) as temporary,
        observer.task("table", len(files)),
        pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=["label", "name"]) as writer,
    ):
        for first in range(0, len(files), ROWS):
            rows = slice(first, first + ROWS)
            columns: dict[str, Any] = {name: column[rows] for name, column in scalars.items()}
            paths = columns["file"]
            thumbnails = pa.array(_thumbnails(images, range(len(files))[rows]), pa.binary())
            columns["image"] = pa.StructArray.from_arrays([thumbnails, paths], fields=list(IMAGE))
            if neighbors is not None and embeddings is not None:
                columns["neighbors"] = _neighbors(embeddings, rows, neighbors[rows])
            writer.write_table(pa.table(columns, schema=schema))
            observer.step_done(len(paths))


def rename_in_parquet(path: Path, names: Mapping[int, str]) -> None:
    """Give the clusters in a file that `write_parquet` wrote these names, and no others."""
    source = pq.ParquetFile(path)
    old = source.schema_arrow
    fields = [field for field in old if field.name != "name"]
    schema = pa.schema([*fields, pa.field("name", pa.string())] if names else fields)
    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=["label", "name"]) as writer,
    ):
        for group in range(source.num_row_groups):
            table = source.read_row_group(group, [field.name for field in fields])
            if names:
                table = table.append_column("name", _named(table["cluster"].to_pylist(), names))
            writer.write_table(table)


def _scalars(
    files: Sequence[str],
    assignment: Assignment,
    labels: Sequence[str] | None,
    names: Mapping[int, str] | None,
    positions: NDArray[np.float32] | None,
) -> dict[str, Any]:
    """Columns of one text or number a row, of N rows."""
    columns = {
        "file": _texts(files),
        "cluster": pa.array(assignment.clusters),
        "own_distance": _known(assignment.own_distance),
        "next_cluster": pa.array(assignment.next_cluster, mask=assignment.next_cluster < 0),
        "next_distance": _known(assignment.next_distance),
        "boundary_ratio": _known(assignment.boundary_ratio),
    }
    if labels is not None:
        columns["label"] = _texts(labels)
    if positions is not None:
        columns["x"], columns["y"] = map(_known, positions.T)
    if names:
        columns["name"] = _named(assignment.clusters.tolist(), names)
    return columns


def _texts(texts: Sequence[str]) -> Any:
    """A column of names, which may hold bytes that are no text; empty ones are null."""
    return pa.array([text.encode("utf-8", "backslashreplace").decode() or None for text in texts], pa.string())


def _known(values: NDArray[np.float32]) -> Any:
    return pa.array(np.ascontiguousarray(values), mask=~np.isfinite(values))


def _named(clusters: Sequence[int], names: Mapping[int, str]) -> Any:
    return pa.array([names.get(cluster) for cluster in clusters], pa.string())


def _neighbors(embeddings: NDArray[np.float32], rows: slice, found: NDArray[np.int64]) -> Any:
    """The neighbors of a block of rows and their distances."""
    differences = embeddings[found] - embeddings[rows][:, None]
    distances = np.sqrt(np.einsum("nkd,nkd->nk", differences, differences))
    starts = np.arange(0, found.size + 1, max(found.shape[1], 1)) if found.shape[1] else np.zeros(len(found) + 1)
    offsets = pa.array(starts.astype(np.int32))
    lists = [pa.ListArray.from_arrays(offsets, pa.array(np.ravel(part))) for part in (found, distances)]
    return pa.StructArray.from_arrays(lists, fields=list(NEIGHBORS))


def _thumbnails(images: ImageSource, rows: range) -> Iterator[bytes]:
    for row in rows:
        image = Image.fromarray(images[row])
        image.thumbnail((EDGE, EDGE), Image.Resampling.BILINEAR, reducing_gap=1.0)
        buffer = io.BytesIO()
        if max(image.size) < PIXELATED_BELOW:
            image.save(buffer, "PNG", optimize=True)
        else:
            image.save(buffer, "JPEG", quality=QUALITY)  # with the same tables in all, which zstd stores once
        yield buffer.getvalue()
