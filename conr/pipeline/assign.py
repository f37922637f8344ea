"""assign: new images → the clusters of the last run. No stage of the pipeline: DVC does not track its output."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from conr.clustering.votes import assign_by_neighbors
from conr.data.folders import images_below
from conr.data.items import Item, paged
from conr.data.reading import read_all
from conr.data.store import load_manifest
from conr.embedding.session import infer, open_session, properties
from conr.errors import UserError
from conr.evaluation.assignment import Assignment, assign
from conr.files import load_array, sha256_of, write_table
from conr.observer import SILENT, Observer
from conr.pipeline.naming import load_clusters, present_names
from conr.pipeline.records import read_record
from conr.pipeline.sorting import Link, check_copies, check_target, check_writable, folder_names, sort_files
from conr.pipeline.workspace import Workspace

AGAIN = "run conr evaluate, or dvc repro"


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
    """

    session: InferenceSession
    centroids: NDArray[np.float32]
    image_size: int
    fit: str
    precision: str
    voters: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None

    def assign(self, embeddings: NDArray[np.float32]) -> Assignment:
        """The clusters of (M, D) embeddings: of the nearest centroid, or of graph clusters by the neighbors' votes."""
        if self.voters is None:
            return assign(embeddings, self.centroids)
        clusters, _ = assign_by_neighbors(embeddings, *self.voters, len(self.centroids))
        return assign(embeddings, self.centroids, clusters)


def assign_folder(
    workspace: Workspace,
    folder: Path,
    output: Path,
    sort_into: Path | None = None,
    device: str = "auto",
    observer: Observer = SILENT,
    *,
    link: Link = "none",
) -> Assigned:
    """Assign every image below a folder to a cluster of a finished run.

    Args:
        workspace: of a finished run.
        folder: searched at any depth.
        output: the table to write.
        sort_into: a folder into which images are copied by cluster: new, empty, or with a part of the same copies,
            which are kept; None for no copies.
        device: "cpu", "cuda" or "auto".
        observer: notified of every image.
        link: "hard" or "symbolic" for links instead of copies.

    Raises:
        UserError: there is no finished run or no readable image, or the targets cannot be written to.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the one that holds the images")
    _check_output(output)
    what = f"--sort-into {sort_into}"
    if sort_into is not None:
        check_target(sort_into, folder, what)
    encoder, names = open_encoder(workspace, device), present_names(workspace)
    images, skipped = images_below(folder, str(folder), encoder.image_size, encoder.fit)
    items, _ = paged(folder, images, _frames(workspace))
    if sort_into is not None:
        known = {item.file for item in items}
        check_copies(sort_into, what, lambda name: name.partition("/")[2] in known)  # which cluster, is not known yet

    embeddings, reasons = embed_items(encoder, items, observer)
    files = [item.file for item, reason in zip(items, reasons, strict=True) if not reason]
    broken = [(item.file, reason) for item, reason in zip(items, reasons, strict=True) if reason]
    if not files:
        raise UserError(
            f"{folder}: none of {len(broken)} images can be read; the first: {broken[0][0]}: {broken[0][1]}"
        )
    assignment = encoder.assign(embeddings)
    write_table(output, *assignment.table(files, names=names), errors="surrogateescape")
    if sort_into is not None:
        folders, clusters = folder_names(len(encoder.centroids), names), assignment.clusters.tolist()
        sort_files(folder, files, clusters, folders, sort_into, what, link, observer)
    return Assigned(files, assignment, broken, skipped, encoder.precision)


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
    session = open_session(file, device)
    centroids = load_array(path, AGAIN)
    made_by = {"encoder": sha256_of(file)}
    record = read_record(workspace.results, AGAIN, made_by)
    made_for = properties(session)
    size, fit = made_for.image_size, made_for.fit
    if session.get_outputs()[0].shape[1] != centroids.shape[1] or size is None or fit is None:
        raise UserError(f"{file} and {path} do not match; run dvc repro again")
    voters = None
    if record.method == "graph":
        read_record(workspace.embedded, AGAIN, made_by)
        voters = load_array(workspace.embeddings(record.seeds[0]), AGAIN), load_clusters(workspace).clusters
    return Encoder(session, centroids, size, fit, made_for.precision, voters)


def embed_items(
    encoder: Encoder, items: Sequence[Item], observer: Observer = SILENT
) -> tuple[NDArray[np.float32], list[str]]:
    """Read and embed images that are in no store.

    Returns:
        (M, D) unit vectors of the M readable ones, in their order; and for each item why it cannot be read, or "".
    """
    reasons: list[str] = []

    def batches() -> Iterator[NDArray[np.uint8]]:
        with closing(read_all(items)) as chunks, observer.task("assign", len(items)):
            for _, outcomes in chunks:
                reasons.extend(outcome if isinstance(outcome, str) else "" for outcome in outcomes)
                good = [outcome for outcome in outcomes if not isinstance(outcome, str)]
                if good:
                    yield np.stack(good)
                observer.step_done(len(outcomes))

    with closing(infer(encoder.session, batches())) as results:
        parts = list(results)
    empty = np.empty((0, encoder.centroids.shape[1]), np.float32)
    return np.concatenate([empty, *parts]), reasons


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
