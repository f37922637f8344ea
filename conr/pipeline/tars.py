"""The images of a run as WebDataset shards: tar files of bounded size, and a table that says what is where."""

import io
import json
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from conr.data.formats import HEAD, SUFFIXES_OF, format_of
from conr.data.store import Store, open_store
from conr.errors import UserError
from conr.files import atomic_file
from conr.observer import SILENT, Observer
from conr.pipeline.naming import load_clusters, read_names
from conr.pipeline.sorting import check_files, check_target, check_writable
from conr.pipeline.workspace import Workspace

SHARD = 2**29  # bytes of images in a tar file, at most; but for an image that is larger
TABLE = "manifest.parquet"
COLUMNS = ("shard", "key", "file", "cluster", "name", "label")
SCHEMA = pa.schema({name: pa.int64() if name == "cluster" else pa.string() for name in COLUMNS})


def write_tars(
    workspace: Workspace, folder: Path, target: Path, observer: Observer = SILENT, shard: int = SHARD
) -> int:
    """Write the images of a finished run with their clusters, in the order of the table of assignments.

    A sample is the image (the file itself, if the images are files of a folder; else the packed pixels as PNG), a
    .cls with the number of its cluster, and a .json with file, cluster, name of the cluster and label, where there are
    such. The same run gives the same bytes. Memory does not grow with the number of images, but for their names.

    Args:
        workspace: of the run.
        folder: the one that the images were read from (prepare.path).
        target: a folder that is new or empty; it appears when all is written.
        observer: notified of every image.
        shard: bytes of images in a tar file, at most.

    Returns:
        The number of tar files.

    Raises:
        UserError: there is no finished run, its images are no longer there, or the target cannot be used.
    """
    store, found = open_store(workspace.store), load_clusters(workspace)
    names, manifest = read_names(workspace, found.identity, found.count), store.manifest
    originals = folder if manifest.dataset == "folder" else None
    if originals is None:
        check_writable(target, str(target))
    else:
        check_files(manifest, originals)
        check_target(target, originals, str(target))
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty; name a new folder")
    run = _Run(store, originals, found.clusters, names, store.label_names)
    building, number = target.with_name(f"{target.name}.{uuid4().hex}.tmp"), 0
    building.mkdir(parents=True)
    try:
        with observer.task("shards", manifest.count), pq.ParquetWriter(building / TABLE, SCHEMA) as table:
            for number, rows in enumerate(_parts(run.sizes(), shard), start=1):
                name = f"shard-{number - 1:06d}.tar"
                with atomic_file(building / name) as temporary, tarfile.open(temporary, "w") as archive:
                    for row in rows:
                        _add(archive, row, *run.image(row), run.facts(row))
                        observer.step_done()
                table.write_table(_table(name, rows, run))
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return number


@dataclass(frozen=True)
class _Run:
    """What is written."""

    store: Store
    originals: Path | None
    clusters: NDArray[np.int64]
    names: dict[int, str]
    labels: list[str] | None

    def sizes(self) -> Iterator[int]:
        """Bytes of each image, or somewhat more."""
        for file in self.store.manifest.files:
            yield self.store.images[0].nbytes if self.originals is None else (self.originals / file).stat().st_size

    def image(self, row: int) -> tuple[bytes, str]:
        """The content of an image's file, and its suffix."""
        if self.originals is None:
            buffer = io.BytesIO()
            Image.fromarray(self.store.images[row]).save(buffer, "PNG")
            return buffer.getvalue(), ".png"
        path = self.originals / self.store.manifest.files[row]
        content = path.read_bytes()
        return content, path.suffix.lower() or SUFFIXES_OF[format_of(content[:HEAD]) or "PNG"][0]

    def facts(self, row: int) -> dict[str, Any]:
        """What is known of an image."""
        cluster, label = int(self.clusters[row]), self.labels[row] if self.labels else ""
        known = {"name": self.names.get(cluster, ""), "label": label}
        return {"file": self.store.manifest.files[row], "cluster": cluster} | {k: v for k, v in known.items() if v}


def _parts(sizes: Iterable[int], limit: int) -> Iterator[range]:
    """Contiguous rows that fill a tar file; one of them at least."""
    first = taken = end = 0
    for end, size in enumerate(sizes, start=1):
        if taken and taken + size > limit:
            yield range(first, end - 1)
            first, taken = end - 1, 0
        taken += size
    yield range(first, end)


def _key(row: int) -> str:
    return f"{row:09d}"


def _add(archive: tarfile.TarFile, row: int, image: bytes, suffix: str, facts: Mapping[str, Any]) -> None:
    """Add a sample; its members have no time and no owner."""
    members = {suffix: image, ".cls": str(facts["cluster"]).encode(), ".json": json.dumps(facts).encode()}
    for ending, content in members.items():
        member = tarfile.TarInfo(_key(row) + ending)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def _table(shard: str, rows: range, run: _Run) -> pa.Table:
    """Rows of the table; names that are no text are written with escapes."""
    lines = [{"shard": shard, "key": _key(row), **run.facts(row)} for row in rows]
    for line in lines:
        line |= {k: v.encode("utf-8", "backslashreplace").decode() for k, v in line.items() if isinstance(v, str)}
    return pa.Table.from_pylist(lines, SCHEMA)
