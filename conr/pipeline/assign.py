"""assign: new images → the clusters of the last run. No stage of the pipeline: DVC does not track its output."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conr.clustering.votes import assign_by_neighbors
from conr.data.folders import images_below
from conr.data.items import Item, paged
from conr.data.store import load_manifest
from conr.data.tars import samples_below
from conr.embedding.bfloat16 import computed_in, open_embedder
from conr.embedding.engines.items import ItemImages
from conr.embedding.engines.local import embed_here
from conr.embedding.engines.run import write_shards
from conr.embedding.engines.settings import LOCAL, Engine
from conr.embedding.engines.shards import Manifest, Shards, layout
from conr.embedding.session import Session, batch_size, properties
from conr.errors import UserError
from conr.evaluation.assignment import Assignment, assign
from conr.files import load_array, sha256_of, write_table
from conr.observer import SILENT, Observer
from conr.parameters import Prepare
from conr.pipeline.naming import load_clusters, present_names
from conr.pipeline.records import read_record
from conr.pipeline.sorting import Link, check_copies, check_target, check_writable, folder_names, sort_files
from conr.pipeline.workspace import RECORD, Workspace

AGAIN = "run conr evaluate, or dvc repro"
COLUMNS = ["cluster", "own_distance", "next_cluster", "next_distance"]


@dataclass(frozen=True)
class Assigned:
    """The result for new images.

    Attributes:
        files: those that could be read, relative to their folder.
        assignment: the cluster of each.
        broken: (file, reason) of images that cannot be read.
        skipped: (file, reason) of files that are no images.
        precision: number format of the encoder.
    """

    files: list[str]
    assignment: Assignment
    broken: list[tuple[str, str]]
    skipped: list[tuple[str, str]]
    precision: str


@dataclass(frozen=True)
class Encoder:
    """The encoder of a finished run and its clusters in the encoder's space.

    Attributes:
        session: the opened encoder.
        centroids: (K, D) float32.
        image_size, fit, precision: as in `conr.embedding.session.Properties`.
        voters: of graph clusters the (N, D) float32 embeddings of the run's images, and their (N,) int64 clusters.
        ballots: of the graph, if it has any, as `conr.clustering.assign_by_neighbors` takes them.
    """

    session: Session
    centroids: NDArray[np.float32]
    image_size: int
    fit: str
    precision: str
    voters: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None
    ballots: NDArray[np.float32] | None = None

    def assign(self, embeddings: NDArray[np.float32]) -> Assignment:
        """The clusters of (M, D) embeddings: of the nearest centroid, or of graph clusters by the neighbors."""
        if self.voters is None:
            return assign(embeddings, self.centroids)
        clusters, _ = assign_by_neighbors(embeddings, *self.voters, len(self.centroids), ballots=self.ballots)
        return assign(embeddings, self.centroids, clusters)

    def describe(self, embeddings: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The columns of shards that say what `assign` does; the next cluster is −1 where there is one cluster."""
        found = self.assign(embeddings)
        values = found.clusters, found.own_distance, found.next_cluster, found.next_distance
        return {**dict(zip(COLUMNS, values, strict=True)), "boundary_ratio": found.boundary_ratio}

    def layout(self, identity: Mapping[str, str], images: int) -> Manifest:
        """The shards of so many images."""
        batch = batch_size(self.session, self.image_size)
        return layout(identity, images, batch, self.image_size, self.centroids.shape[1])


def assign_folder(
    workspace: Workspace,
    folder: Path,
    output: Path,
    sort_into: Path | None = None,
    device: str = "auto",
    observer: Observer = SILENT,
    *,
    link: Link = "none",
    engine: Engine = LOCAL,
    embeddings: Path | None = None,
    webdataset: bool = False,
) -> Assigned:
    """Assign every image below a folder, or in the tar files below it, to a cluster of a finished run.

    Args:
        workspace: of a finished run.
        folder: searched at any depth.
        output: the table to write.
        sort_into: a folder into which images are copied by cluster: new, empty, or with a part of the same copies,
            which are kept; None for no copies.
        device: "cpu", "cuda" or "auto".
        observer: notified of every image.
        link: "hard" or "symbolic" for links instead of copies.
        engine: who embeds.
        embeddings: a folder in which embeddings and clusters stay, as shards (`conr.embedding.engines.shards`); those
            that are there are used. None for none.
        webdataset: whether the images are in tar files (`conr.data.tars.samples_below`), not files.

    Raises:
        UserError: there is no finished run or no readable image, the targets cannot be written to, the engine
            cannot be used, or images in tar files should be copied.
    """
    _check_folder(folder)
    _check_output(output)
    what = f"--sort-into {sort_into}"
    if sort_into is not None:
        if webdataset:
            raise UserError(f"{what} cannot be used with --webdataset: it copies files; unpack the tar files first")
        check_target(sort_into, folder, what)
    encoder, names = open_encoder(workspace, device), present_names(workspace)
    images, skipped = _images(workspace, folder, encoder, webdataset)
    if sort_into is not None:
        known = {item.file for item in images.items}
        check_copies(sort_into, what, lambda name: name.partition("/")[2] in known)  # which cluster, is not known yet

    with _shards(workspace, folder, encoder, images, engine, embeddings) as shards:
        write_shards(engine, workspace.encoder, device, images, shards, encoder.describe, observer, "assign")
        reasons, assignment = _read(shards)
        if embeddings is not None:
            shards.publish()
    pairs = list(zip((item.file for item in images.items), reasons, strict=True))
    files, broken = [file for file, reason in pairs if not reason], [pair for pair in pairs if pair[1]]
    if not files:
        raise UserError(
            f"{folder}: none of {len(broken)} images can be read; the first: {broken[0][0]}: {broken[0][1]}"
        )
    write_table(output, *assignment.table(files, names=names), errors="surrogateescape")
    if sort_into is not None:
        folders, clusters = folder_names(len(encoder.centroids), names), assignment.clusters.tolist()
        sort_files(folder, files, clusters, folders, sort_into, what, link, observer)
    return Assigned(files, assignment, broken, skipped, encoder.precision)


def assign_share(
    workspace: Workspace,
    folder: Path,
    engine: Engine,
    embeddings: Path | None = None,
    device: str = "auto",
    observer: Observer = SILENT,
    *,
    webdataset: bool = False,
) -> Path:
    """Embed and assign a share of the images, into shards that `assign_folder` uses, with the same folder and flags.

    Returns:
        The folder of the shards.

    Raises:
        UserError: as in `assign_folder`.
    """
    _check_folder(folder)
    encoder = open_encoder(workspace, device)
    images, _ = _images(workspace, folder, encoder, webdataset)
    with _shards(workspace, folder, encoder, images, engine, embeddings) as shards:
        write_shards(engine, workspace.encoder, device, images, shards, encoder.describe, observer, "assign")
    return shards.folder


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the one that holds the images")


def _images(
    workspace: Workspace, folder: Path, encoder: Encoder, webdataset: bool
) -> tuple[ItemImages, list[tuple[str, str]]]:
    """The images below a folder, or in the tar files below it; and (file, reason) of what is left out."""
    if webdataset:
        settings = {"source": "webdataset", "image_size": encoder.image_size, "fit": encoder.fit}
        items, skipped = samples_below(folder, str(folder), Prepare.model_validate(settings))
        return ItemImages(items, encoder.image_size), skipped
    found, skipped = images_below(folder, str(folder), encoder.image_size, encoder.fit)
    items, _ = paged(folder, found, _frames(workspace))
    return ItemImages(items, encoder.image_size), skipped


@contextmanager
def _shards(
    workspace: Workspace,
    folder: Path,
    encoder: Encoder,
    images: ItemImages,
    engine: Engine,
    embeddings: Path | None,
) -> Iterator[Shards]:
    """Where the shards are: in the user's folder, or in scratch space until all of their results are out.

    Without either, a run that is stopped leaves nothing, and starts again.
    """
    if engine == LOCAL and embeddings is None:
        with TemporaryDirectory(prefix="conr-") as temporary:
            yield Shards.opened(Path(temporary), encoder.layout({}, len(images)))
        return
    identity = {
        "encoder": sha256_of(workspace.encoder),
        "clusters": sha256_of(workspace.results / RECORD),
        "images": _fingerprint(folder, images, _frames(workspace)),
    }
    plan = encoder.layout(identity, len(images))
    shards = Shards.opened(embeddings or workspace.shards(plan.fingerprint), plan)
    yield shards
    if embeddings is None and not engine.is_share:
        shutil.rmtree(shards.folder, ignore_errors=True)


def _fingerprint(folder: Path, images: ItemImages, frames: str) -> str:
    """What differs where other images would be read: names, and sizes and times of change of the files they are in."""
    digest = hashlib.sha256(frames.encode())
    for item in images.items:
        status = _status(f"{folder}/{item.file}")
        digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode() + os.fsencode(item.file) + b"\0")
    return digest.hexdigest()


def _status(path: str) -> os.stat_result:
    """Of a file, or of the tar file that it is in."""
    try:
        return os.stat(path)  # noqa: PTH116
    except NotADirectoryError:
        return _status(os.path.dirname(path))  # noqa: PTH120


def _read(shards: Shards) -> tuple[list[str], Assignment]:
    """Of all images why they cannot be read, or ""; and the assignment of those that can."""
    reasons: list[str] = []
    parts = []
    for table in shards.read(["reason", *COLUMNS]):
        reasons += [reason or "" for reason in table["reason"].to_pylist()]
        good = table.select(COLUMNS).drop_null()
        parts.append([good[name].to_numpy() for name in COLUMNS])
    return reasons, Assignment(*map(np.concatenate, zip(*parts, strict=True)))


def open_encoder(workspace: Workspace, device: str) -> Encoder:
    """The encoder and the clusters of a finished run.

    They are checked to be of the same run: distances to another encoder's centroids are meaningless.

    Args:
        workspace: of the run.
        device: "cpu", "cuda" or "auto".

    Raises:
        UserError: one is missing or damaged, or they belong to different runs.
    """
    file, path = workspace.encoder, workspace.centroids
    session = open_embedder(file, device)
    centroids = load_array(path, AGAIN)
    made_by = {"encoder": sha256_of(file)}
    record = read_record(workspace.results, AGAIN, made_by)
    made_for = properties(session)
    size, fit = made_for.image_size, made_for.fit
    if session.get_outputs()[0].shape[1] != centroids.shape[1] or size is None or fit is None:
        raise UserError(f"{file} and {path} do not match; run dvc repro again")
    voters = ballots = None
    if record.method == "graph":
        read_record(workspace.embedded, AGAIN, made_by)
        voters = load_array(workspace.embeddings(record.seeds[0]), AGAIN), load_clusters(workspace).clusters
        if workspace.ballots.name in record.made:
            ballots = load_array(workspace.ballots, AGAIN)
    return Encoder(session, centroids, size, fit, computed_in(session), voters, ballots)


def embed_items(
    encoder: Encoder, items: Sequence[Item], observer: Observer = SILENT
) -> tuple[NDArray[np.float32], list[str]]:
    """Read and embed images that are in no store.

    Returns:
        (M, D) unit vectors of the M readable ones, in their order; and for each item why it cannot be read, or "".
    """
    images = ItemImages(items, encoder.image_size)
    rows = encoder.layout({}, len(items)).part
    parts = [range(first, min(first + rows, len(items))) for first in range(0, len(items), rows)]
    found, reasons = [np.empty((0, encoder.centroids.shape[1]), np.float32)], []
    with closing(embed_here(encoder.session, images, parts)) as results, observer.task("assign", len(items)):
        for result in results:
            found.append(result.embeddings)
            reasons += result.reasons
            observer.step_done(len(result.reasons))
    return np.concatenate(found), reasons


def _frames(workspace: Workspace) -> str:
    """What counts of a file with several pages: as for the images of the run, but one image a file."""
    if not workspace.store.exists():
        return "first"
    frames = load_manifest(workspace.store).frames
    return "first" if frames == "all" else frames


def _check_output(output: Path) -> None:
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file, such as {output / 'assignments.csv'}")
    check_writable(output.parent, f"--output {output}")
