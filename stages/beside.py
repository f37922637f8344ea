"""The commands beside the pipeline: assign, ablate, sweep, estimate. Each returns its summary."""

import shutil
from pathlib import Path

import numpy as np
import torch

from conr.embedding.engines.settings import Engine
from conr.errors import UserError
from conr.observer import Observer
from conr.parameters import Parameters
from conr.pipeline import ablation
from conr.pipeline import estimate as cost
from conr.pipeline import info as information
from conr.pipeline import sweep as sweeping
from conr.pipeline.assign import assign_folder, assign_share
from conr.pipeline.naming import name_clusters
from conr.pipeline.sorting import Link, sort_run
from conr.pipeline.workspace import Workspace
from conr.text import counted, printable

from .console import show_cursor

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
    engine: Engine,
    observer: Observer,
) -> str:
    """Assign new images to the clusters of the last run, or a share of them."""
    if engine.is_share:
        shards = assign_share(workspace, folder, engine, embeddings, device, observer)
        return f"share {engine.shard} is in {shards}; run the command with --shard merge after all of them"
    done = assign_folder(
        workspace, folder, output, sort_into, device, observer, link=link, engine=engine, embeddings=embeddings
    )
    clusters = len(np.unique(done.assignment.clusters))
    lines = [f"{counted(len(done.files), 'image')} in {counted(clusters, 'cluster')}, listed in {output.resolve()}"]
    if done.precision == "int8":
        lines.append("by an int8 encoder (extract.precision)")
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


def name(workspace: Workspace, cluster: int | None, text: str | None, observer: Observer) -> str:
    """Name a cluster, or show again what the table of names says."""
    names = name_clusters(workspace, None if cluster is None else {cluster: text or ""})
    lines = [f"{number} {name}" for number, name in names.items()] or ["no cluster has a name"]
    lines.append(f"names are in {workspace.names} and in all results; load the page again to see them")
    return "\n".join(["", *lines])


def _named(pair: tuple[str, str]) -> str:
    """A file and why it was left out, on one line whatever is in the name."""
    return printable(": ".join(pair))


def ablate(
    workspace: Workspace,
    parameters: Parameters,
    seeds: list[int],
    rows: list[int],
    jobs: int,
    engine: Engine,
    observer: Observer,
) -> str:
    """Run the rows of Table 2."""
    table = ablation.ablate(workspace, parameters, seeds, rows, jobs, observer, engine)
    return f"\n{table}\n\ntable, scores of every run and curves in {workspace.ablation}/"


def sweep(workspace: Workspace, parameters: list[str], observer: Observer) -> str:
    """Plot DVC's experiments."""
    count, figure, table = sweeping.sweep(workspace, parameters, observer)
    return f"{count} experiments in {figure} and {table}"


def info(workspace: Workspace, verify: bool, observer: Observer) -> str:
    """Say what the workspace holds.

    Raises:
        UserError: something of it is damaged.
    """
    lines, wrong = information.info(workspace, verify)
    if wrong:
        raise UserError("\n".join([*wrong, "", *lines]))
    return "\n".join(["", *lines, *(["all of it is what was written"] if verify else [])])


def estimate(workspace: Workspace, parameters: Parameters, observer: Observer) -> str:
    """Say what training will take."""
    try:
        costs = cost.estimate(workspace, parameters, observer)
    finally:
        show_cursor()
    on_gpu = costs["finetune"].device_memory is not None
    device = torch.cuda.get_device_name() if on_gpu else f"the CPU (threads: {torch.get_num_threads()})"
    free = shutil.disk_usage(workspace.scratch).free
    return "\n".join(["", *cost.report(costs, device, free, cost.machine_memory())])
