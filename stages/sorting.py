"""conr assign and conr sort: images, new ones or those of the run, by cluster. Each returns its summary.

Where only new images are assigned PyTorch and DVC need not be installed (the target runtime of docker/Dockerfile).
"""

from pathlib import Path

import numpy as np

from conr.embedding.engines.settings import Engine
from conr.errors import UserError
from conr.observer import Observer
from conr.parameters import Parameters
from conr.pipeline.assign import assign_folder, assign_share
from conr.pipeline.sorting import Link, sort_run
from conr.pipeline.tars import TABLE, write_tars
from conr.pipeline.workspace import Workspace
from conr.text import counted, printable

SHOWN = 3  # skipped files that are named
NAMED = 8  # folders
DONE = {"none": "copied into", "hard": "hard links in", "symbolic": "symbolic links in"}


def assign(
    workspace: Workspace,
    folder: Path,
    output: Path,
    sort_into: Path | None,
    link: Link,
    device: str,
    embeddings: Path | None,
    webdataset: bool,
    engine: Engine,
    observer: Observer,
) -> str:
    """Assign new images to the clusters of the last run, or a share of them."""
    if engine.is_share:
        shards = assign_share(workspace, folder, engine, embeddings, device, observer, webdataset=webdataset)
        return f"share {engine.shard} is in {shards}; run the command with --shard merge after all of them"
    done = assign_folder(
        workspace,
        folder,
        output,
        sort_into,
        device,
        observer,
        link=link,
        engine=engine,
        embeddings=embeddings,
        webdataset=webdataset,
    )
    clusters = len(np.unique(done.assignment.clusters))
    lines = [f"{counted(len(done.files), 'image')} in {counted(clusters, 'cluster')}, listed in {output.resolve()}"]
    if done.precision != "float32":
        lines.append(f"by an encoder in {done.precision}")
    if sort_into is not None:
        lines.append(f"{DONE[link]} one folder per cluster in {sort_into.resolve()}")
    if done.broken:
        lines.append(f"{counted(len(done.broken), 'image')} cannot be read, the first: {_named(done.broken[0])}")
    if done.skipped:
        lines.append(f"{counted(len(done.skipped), 'other file')} skipped:")
        lines += [f"  {_named(pair)}" for pair in done.skipped[:SHOWN]]
    if len(done.skipped) > SHOWN:
        lines.append(f"  … and {len(done.skipped) - SHOWN:,} more")
    return "\n".join(lines)


def sort(workspace: Workspace, parameters: Parameters, target: Path, link: Link, observer: Observer) -> str:
    """Sort the images of the last run into folders."""
    if parameters.prepare.source != "folder":
        raise UserError(f"prepare.source = {parameters.prepare.source}: only the files of a folder can be sorted")
    folders = sort_run(workspace, Path(parameters.prepare.path), target, link, observer)
    return f"{DONE[link]} {counted(len(folders), 'folder')} in {target.resolve()}: {', '.join(folders[:NAMED])}" + (
        " …" if len(folders) > NAMED else ""
    )


def write_webdataset(workspace: Workspace, parameters: Parameters, target: Path, link: Link, observer: Observer) -> str:
    """Write the images of the last run as tar files with the clusters."""
    if link != "none":
        raise UserError(f"--link {link} cannot be used with --webdataset: tar files hold copies")
    count = write_tars(workspace, Path(parameters.prepare.path), target, observer)
    return f"{counted(count, 'tar file')} and {TABLE} in {target.resolve()}"


def _named(pair: tuple[str, str]) -> str:
    """A file and why it was left out, on one line whatever is in the name."""
    return printable(": ".join(pair))
