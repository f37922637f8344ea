"""assign: new images → the clusters of the last run. No artifact of the pipeline, but what one uses it for."""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.data.reading import read_all
from conr.data.sources import open_source
from conr.errors import UserError
from conr.evaluation import place
from conr.export import infer, open_session, properties
from conr.files import sha256_of
from conr.parameters import Prepare
from conr.progress import Progress
from stages.paths import CENTROIDS, CLUSTERED, ENCODER
from stages.tables import write_assignments


def run(folder: Path, output: Path, sort_into: Path | None, device: str, progress: Progress) -> str:
    """Assign every image below a folder to the nearest centroid; returns the summary."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the one that holds the images")
    session = open_session(ENCODER, device)
    made_for = properties(session)
    if not CENTROIDS.is_file():
        raise UserError(f"{CENTROIDS} does not exist; run conr evaluate first")
    try:
        centroids = np.load(CENTROIDS)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{CENTROIDS} is not whole ({error}); run conr evaluate again") from error
    _check_encoder()
    if not {"image_size", "fit"} <= made_for.keys() or session.get_outputs()[0].shape[1] != centroids.shape[1]:
        raise UserError(f"{ENCODER} and {CENTROIDS} do not belong together; run dvc repro again")
    size, fit = made_for["image_size"], made_for["fit"]
    source = open_source(Prepare.model_validate({"path": str(folder), "image_size": size, "fit": fit}))

    files: list[str] = []
    broken: list[tuple[str, str]] = []

    def batches() -> Iterator[NDArray[np.uint8]]:
        with closing(read_all(source.items)) as chunks, progress("assign", len(source.items)) as advance:
            for chunk, outcomes in chunks:
                pairs = list(zip(chunk, outcomes, strict=True))
                broken.extend((item.file, why) for item, why in pairs if isinstance(why, str))
                good = [(item.file, image) for item, image in pairs if not isinstance(image, str)]
                files.extend(file for file, _ in good)
                if good:
                    yield np.stack([image for _, image in good])
                advance(len(chunk))

    with closing(infer(session, batches())) as results:
        parts = list(results)
    if not files:
        raise UserError(
            f"{folder}: none of {len(broken)} images can be read; the first: {broken[0][0]}: {broken[0][1]}"
        )
    placement = place(np.concatenate(parts), centroids)
    write_assignments(output, files, placement)
    lines = [f"{len(files):,} images in {len(np.unique(placement.assignments))} clusters, listed in {output.resolve()}"]
    if made_for.get("precision") == "int8":
        lines.append("by an int8 encoder (extract.precision)")
    if sort_into is not None:
        _copy(folder, files, placement.assignments.tolist(), len(centroids), sort_into)
        lines.append(f"copied into one folder per cluster in {sort_into.resolve()}")
    if broken:
        lines.append(f"{len(broken):,} images cannot be read, the first: {broken[0][0]}: {broken[0][1]}")
    return "\n".join(lines)


def _check_encoder() -> None:
    """Distances of one encoder's embeddings to the centroids of another's would look right and mean nothing."""
    try:
        clustered = json.loads(CLUSTERED.read_text())["encoder"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{CLUSTERED}, which names the encoder of {CENTROIDS}, is missing or not whole ({error}); run conr "
            "evaluate again, or dvc repro"
        ) from error
    if clustered != sha256_of(ENCODER):
        raise UserError(f"{CENTROIDS} belongs to another encoder than {ENCODER}; run conr evaluate, or dvc repro")


def _copy(folder: Path, files: list[str], assignments: list[int], clusters: int, target: Path) -> None:
    """Copy each file to <target>/<cluster>/<its path below the folder>."""
    digits = len(str(clusters - 1))  # of all clusters, so that the folders are the same whatever images come
    for file, cluster in zip(files, assignments, strict=True):
        destination = target / f"{cluster:0{digits}}" / file
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / file, destination)
