"""assign: new images → the clusters of the last run. No stage of the pipeline: DVC does not track its output."""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from conr.data.folders import images_below
from conr.data.items import Item, paged
from conr.data.reading import read_all
from conr.data.store import load_manifest
from conr.embedding.session import infer, open_session, properties
from conr.errors import UserError, disk_is_full
from conr.evaluation.assignment import Assignment, assign
from conr.files import load_array, sha256_of, write_table
from conr.observer import SILENT, Observer
from conr.pipeline.records import read_record
from conr.pipeline.workspace import Workspace

AGAIN = "run conr evaluate, or dvc repro"
TEMPORARY = re.compile(r"[0-9a-f]{32}\.tmp")  # a copy that is not whole


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
    """The encoder of a finished run and the centroids in its space.

    Attributes:
        session: the opened encoder.
        centroids: (K, D) float32.
        image_size, fit, precision: as in `conr.embedding.session.Properties`.
    """

    session: InferenceSession
    centroids: NDArray[np.float32]
    image_size: int
    fit: str
    precision: str


def assign_folder(
    workspace: Workspace,
    folder: Path,
    output: Path,
    sort_into: Path | None = None,
    device: str = "auto",
    observer: Observer = SILENT,
) -> Assigned:
    """Assign every image below a folder to the nearest centroid.

    Args:
        workspace: of a finished run.
        folder: searched at any depth.
        output: the table to write.
        sort_into: a folder into which images are copied by cluster: new, empty, or with a part of the same copies,
            which are kept; None for no copies.
        device: "cpu", "cuda" or "auto".
        observer: notified of every image.

    Raises:
        UserError: there is no finished run or no readable image, or the targets cannot be written to.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the one that holds the images")
    _check_output(output)
    if sort_into is not None:
        _check_sort_into(sort_into, folder)
    encoder = open_encoder(workspace, device)
    images, skipped = images_below(folder, str(folder), encoder.image_size, encoder.fit)
    items, _ = paged(folder, images, _frames(workspace))
    if sort_into is not None:
        known = {item.file for item in items}
        _check_copies(sort_into, lambda name: name.partition("/")[2] in known)  # which cluster, is not known yet

    embeddings, reasons = embed_items(encoder, items, observer)
    files = [item.file for item, reason in zip(items, reasons, strict=True) if not reason]
    broken = [(item.file, reason) for item, reason in zip(items, reasons, strict=True) if reason]
    if not files:
        raise UserError(
            f"{folder}: none of {len(broken)} images can be read; the first: {broken[0][0]}: {broken[0][1]}"
        )
    assignment = assign(embeddings, encoder.centroids)
    write_table(output, *assignment.table(files), errors="surrogateescape")
    if sort_into is not None:
        copy_sorted(folder, files, assignment.clusters.tolist(), len(encoder.centroids), sort_into)
    return Assigned(files, assignment, broken, skipped, encoder.precision)


def open_encoder(workspace: Workspace, device: str) -> Encoder:
    """The encoder and the centroids of a finished run.

    They are checked to be of the same run: distances to another encoder's centroids are meaningless.

    Raises:
        UserError: one is missing or damaged, or they belong to different runs.
    """
    file, path = workspace.encoder, workspace.centroids
    session = open_session(file, device)
    centroids = load_array(path, AGAIN)
    read_record(workspace.results, AGAIN, {"encoder": sha256_of(file)})
    made_for = properties(session)
    size, fit = made_for.image_size, made_for.fit
    if session.get_outputs()[0].shape[1] != centroids.shape[1] or size is None or fit is None:
        raise UserError(f"{file} and {path} do not match; run dvc repro again")
    return Encoder(session, centroids, size, fit, made_for.precision)


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
    _check_writable(output.parent, f"--output {output}")


def _check_sort_into(target: Path, folder: Path) -> None:
    """Refuse a folder inside the source, whose copies a next run would sort, and one that cannot be written to."""
    if target.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"--sort-into {target} lies in {folder}, whose images are sorted; name a folder outside it")
    _check_writable(target, f"--sort-into {target}")


def _check_copies(target: Path, is_copy: Callable[[str], bool]) -> None:
    """Refuse a folder that holds what an interrupted run would not have left."""
    for path in sorted(path for path in target.rglob("*") if not path.is_dir()):
        name = path.relative_to(target).as_posix()
        if not (is_copy(name) or TEMPORARY.fullmatch(path.name)):
            raise UserError(
                f"--sort-into {target} holds something else than these copies, the first: {name}; name a new folder, "
                "or remove what is in it"
            )


def _check_writable(folder: Path, what: str) -> None:
    """Check that files can be written to a folder, which need not exist yet."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise UserError(f"{what}: cannot write to {there}; choose another folder")


def copy_sorted(folder: Path, files: list[str], clusters: list[int], count: int, target: Path) -> None:
    """Copy each file to <target>/<cluster>/<its path below the folder>.

    A copy has its name only once it is whole, so that a run that was stopped (by a full disk, say) is resumed by the
    same call: copies that are there are kept.

    Raises:
        UserError: the target holds other files.
        OSError: a file cannot be read, or its copy not be written.
    """
    digits = len(str(count - 1))  # of all clusters, so that the folders are the same whatever images come
    names = [f"{cluster:0{digits}}/{file}" for file, cluster in zip(files, clusters, strict=True)]
    _check_copies(target, set(names).__contains__)
    for left in target.rglob("*.tmp"):
        if TEMPORARY.fullmatch(left.name):
            left.unlink()
    for file, name in zip(files, names, strict=True):
        source, copy = folder / file, target / name
        if not (copy.is_file() and copy.stat().st_size == source.stat().st_size):
            copy.parent.mkdir(parents=True, exist_ok=True)
            _copy_whole(source, copy)


def _copy_whole(source: Path, copy: Path) -> None:
    temporary = copy.with_name(f"{uuid4().hex}.tmp")  # not the name and more: names can be as long as may be
    try:
        shutil.copy2(source, temporary)
        temporary.replace(copy)
    except OSError as error:
        if disk_is_full(error):  # shutil names the source
            raise OSError(error.errno, error.strerror, str(copy)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
