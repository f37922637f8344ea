"""Embeddings in shards: Parquet files of a bounded number of rows, each written whole or not at all, and a manifest.

A shard is whole if it is there: it can be made again by anyone, and always has the same rows.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from conr.errors import UserError, one_line
from conr.files import ArrayWriter, atomic_file, load_json, sha256_of, write_json

MANIFEST = "_manifest.json"  # readers of a folder of Parquet files leave out what begins with an underscore
ROWS = 65_536  # of a shard, about
BYTES, MOST = 2**23, 4096  # pixels and images of a part, about and at most
SHOWN = 8  # numbers of missing shards that a message shows

Describe = Callable[[NDArray[np.float32]], Mapping[str, NDArray[Any]]]


class ShardFile(BaseModel):
    """What the manifest says of a shard.

    Attributes:
        file: its name in the folder.
        first: number of its first image.
        rows: how many it has.
        broken: so many of them cannot be read.
        sha256: of the file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    first: int
    rows: int
    broken: int
    sha256: str


class Manifest(BaseModel):
    """What a folder of shards holds.

    Attributes:
        identity: → what identifies it: encoder, images and what else the rows are made from.
        images: N, the number of rows.
        rows: of a shard; the last may have fewer.
        part: images that are embedded together; divides the rows.
        dimension: of the embeddings, D.
        shards: all of them, once all are there; None before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: dict[str, str]
    images: int
    rows: int
    part: int
    dimension: int
    shards: list[ShardFile] | None = None

    @property
    def fingerprint(self) -> str:
        """A short name that differs where the rows do."""
        return hashlib.sha256(self.model_dump_json(exclude={"shards"}).encode()).hexdigest()[:16]


def layout(identity: Mapping[str, str], images: int, batch: int, image_size: int, dimension: int) -> Manifest:
    """The manifest of shards that are still to be made: parts of some megabytes, in whole batches; whole parts."""
    fitting = min(BYTES // (3 * image_size**2), MOST)
    part = batch * max(fitting // batch, 1)
    rows = part * max(ROWS // part, 1)
    return Manifest(identity=dict(identity), images=images, rows=rows, part=part, dimension=dimension)


@dataclass(frozen=True)
class Shards:
    """A folder of shards.

    Attributes:
        folder: which holds them.
        manifest: what they are.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def opened(cls, folder: Path, manifest: Manifest) -> "Shards":
        """A folder for shards, in which some of them may be already.

        Raises:
            UserError: it holds shards of something else.
        """
        path = folder / MANIFEST
        if not path.exists():
            if folder.is_dir() and any(folder.glob("*.parquet")):
                raise UserError(f"{folder} holds Parquet files that are not conr's; name a new folder")
            write_json(path, manifest)
        found = load_json(path, Manifest, f"delete {folder} and run the same command again")
        if found.model_copy(update={"shards": None}) != manifest:
            different = [key for key, value in manifest.identity.items() if found.identity.get(key) != value]
            what = " and ".join(different) or "sizes"
            raise UserError(f"{folder} holds shards of other {what}; name another folder, or delete it")
        return cls(folder, manifest)

    @property
    def count(self) -> int:
        """How many there are when all are there."""
        return math.ceil(self.manifest.images / self.manifest.rows)

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / f"shard-{number + 1:05d}-of-{self.count:05d}.parquet"

    def rows(self, number: int) -> range:
        """Which images a shard is of."""
        first = number * self.manifest.rows
        return range(first, min(first + self.manifest.rows, self.manifest.images))

    def parts(self, number: int) -> list[range]:
        """The parts of a shard."""
        rows, size = self.rows(number), self.manifest.part
        return [range(first, min(first + size, rows.stop)) for first in range(rows.start, rows.stop, size)]

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those of some shards that are not there."""
        return [number for number in numbers if not self.path(number).exists()]

    def write(
        self,
        number: int,
        names: Sequence[str],
        embeddings: NDArray[np.float32],
        reasons: Sequence[str],
        columns: Mapping[str, NDArray[Any]],
    ) -> None:
        """Write a shard.

        Args:
            number: of the shard.
            names: of its R files; bytes that are no text are written with escapes.
            embeddings: (G, D) float32, of the G images that can be read.
            reasons: R reasons why an image cannot be read, empty if it can.
            columns: name → (G,) values of what else is known of these; null for the others.
        """
        if not len(names) == len(reasons) == len(self.rows(number)) or len(embeddings) != list(reasons).count(""):
            raise ValueError(f"shard {number} has {len(self.rows(number))} rows")
        # Numbers of the G rows, null for the others: taking them makes a column of R.
        good = np.array([not reason for reason in reasons])
        places = pa.array(np.cumsum(good) - 1, mask=~good)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), self.manifest.dimension)
        table = pa.table(
            {
                "file": [name.encode("utf-8", "backslashreplace").decode() for name in names],
                "reason": pa.array([reason or None for reason in reasons], pa.string()),
                "embedding": vectors.take(places),
                **{name: pa.array(values).take(places) for name, values in columns.items()},
            }
        )
        with atomic_file(self.path(number)) as temporary:
            pq.write_table(table, temporary, compression="zstd", use_dictionary=False, write_page_checksum=True)

    def check_all(self, remedy: str) -> None:
        """Whether all shards are there.

        Raises:
            UserError: some are missing; they are named from 1, as the files are.
        """
        missing = self.missing(range(self.count))
        if missing:
            shown = ", ".join(str(number + 1) for number in missing[:SHOWN]) + (", …" if missing[SHOWN:] else "")
            raise UserError(f"{self.folder}: {len(missing):,} of {self.count:,} shards are missing ({shown}); {remedy}")

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of all shards, in order, a shard at a time.

        Raises:
            UserError: one is damaged, or not the one that was written.
        """
        for number in range(self.count):
            path = self.path(number)
            try:
                table = pq.read_table(path, columns=list(columns), page_checksum_verification=True)
            except (OSError, pa.ArrowException) as error:
                raise UserError(
                    f"{path} is damaged ({one_line(error)}); delete it and run the same command again"
                ) from error
            if len(table) != len(self.rows(number)):
                raise UserError(f"{path} has {len(table)} rows, not {len(self.rows(number))}; delete it")
            yield table

    def publish(self) -> None:
        """Write the manifest with all shards, whose contents are read and checked."""
        files = []
        for number, table in enumerate(self.read(["reason"])):
            path, rows = self.path(number), self.rows(number)
            broken = len(table) - table["reason"].null_count
            facts = {"file": path.name, "first": rows.start, "rows": len(rows), "broken": broken}
            files.append(ShardFile.model_validate({**facts, "sha256": sha256_of(path)}))
        write_json(self.folder / MANIFEST, self.manifest.model_copy(update={"shards": files}))

    def write_array(self, path: Path) -> None:
        """Write all embeddings as an (N, D) float32 .npy file; memory does not grow with N."""
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            writer = ArrayWriter(file, (self.manifest.dimension,), np.float32)
            for table in self.read(["embedding"]):
                for chunk in table["embedding"].chunks:
                    writer.append(chunk.flatten().to_numpy().reshape(-1, self.manifest.dimension))
            writer.close()
