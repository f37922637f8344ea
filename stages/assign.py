"""assign: new images → the clusters of the last run. No artifact of the pipeline, but what one uses it for."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.data.folders import images_below
from conr.data.reading import read_all
from conr.errors import UserError
from conr.evaluation import place
from conr.export import infer, open_session, properties
from conr.files import sha256_of
from conr.progress import Progress
from stages.paths import CENTROIDS, CLUSTERED, ENCODER
from stages.tables import write_assignments

SHOWN = 3  # files of those that were skipped


def run(folder: Path, output: Path, sort_into: Path | None, device: str, progress: Progress) -> str:
    """Assign every image below a folder to the nearest centroid; returns the summary."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the one that holds the images")
    _check_output(output)
    if sort_into is not None:
        _check_sort_into(sort_into, folder)
    session = open_session(ENCODER, device)
    made_for = properties(session)
    size, fit = made_for.get("image_size"), made_for.get("fit")
    centroids = _centroids()
    of_another_kind = session.get_outputs()[0].shape[1] != centroids.shape[1]
    if of_another_kind or not (isinstance(size, int) and isinstance(fit, str)):
        raise UserError(f"{ENCODER} and {CENTROIDS} do not belong together; run dvc repro again")
    items, skipped = images_below(folder, str(folder), size, fit)

    files: list[str] = []
    broken: list[tuple[str, str]] = []

    def batches() -> Iterator[NDArray[np.uint8]]:
        with closing(read_all(items)) as chunks, progress("assign", len(items)) as advance:
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
    if skipped:
        lines.append(f"{len(skipped):,} other files skipped:")
        lines += [f"  {file}: {reason}" for file, reason in skipped[:SHOWN]]
    if len(skipped) > SHOWN:
        lines.append(f"  … and {len(skipped) - SHOWN:,} more")
    return "\n".join(lines)


def _check_output(output: Path) -> None:
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file, such as {output / 'assignments.csv'}")
    _check_writable(output.parent, f"--output {output}")


def _check_sort_into(target: Path, folder: Path) -> None:
    """Copies of an earlier run would stand beside this one's; those in the source would be its images next time."""
    if target.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"--sort-into {target} lies in {folder}, whose images are sorted; name a folder outside it")
    _check_writable(target, f"--sort-into {target}")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"--sort-into {target} is not empty; name a new folder, or remove what is in it")


def _check_writable(folder: Path, what: str) -> None:
    """Whether files can be written to a folder that need not be there yet."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise UserError(f"{what}: {there} is no folder that can be written to; name another place")


def _centroids() -> NDArray[np.float32]:
    """Those of this very encoder: its distances to another's would look right and mean nothing."""
    if not CENTROIDS.is_file():
        raise UserError(f"{CENTROIDS} does not exist; run conr evaluate first")
    try:
        centroids: NDArray[np.float32] = np.load(CENTROIDS)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{CENTROIDS} is not whole ({error}); run conr evaluate again") from error
    try:
        encoder = json.loads(CLUSTERED.read_text())["encoder"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{CLUSTERED}, which names the encoder of {CENTROIDS}, is missing or not whole ({error}); run conr "
            "evaluate again, or dvc repro"
        ) from error
    if encoder != sha256_of(ENCODER):
        raise UserError(f"{CENTROIDS} belongs to another encoder than {ENCODER}; run conr evaluate, or dvc repro")
    return centroids


def _copy(folder: Path, files: list[str], assignments: list[int], clusters: int, target: Path) -> None:
    """Copy each file to <target>/<cluster>/<its path below the folder>."""
    digits = len(str(clusters - 1))  # of all clusters, so that the folders are the same whatever images come
    for file, cluster in zip(files, assignments, strict=True):
        destination = target / f"{cluster:0{digits}}" / file
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / file, destination)
