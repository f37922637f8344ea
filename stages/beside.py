"""The commands beside the pipeline: name, ablate, sweep, estimate. Each returns its summary."""

import shutil

import torch

from conr.embedding.engines.settings import Engine
from conr.observer import Observer
from conr.parameters import Parameters
from conr.pipeline import ablation
from conr.pipeline import estimate as cost
from conr.pipeline import sweep as sweeping
from conr.pipeline.renaming import name_clusters
from conr.pipeline.workspace import Workspace
from conr.processes import machine_memory

from .console import show_cursor


def name(workspace: Workspace, cluster: int | None, text: str | None, observer: Observer) -> str:
    """Name a cluster, or show again what the table of names says."""
    names = name_clusters(workspace, None if cluster is None else {cluster: text or ""})
    lines = [f"{number} {name}" for number, name in names.items()] or ["no cluster has a name"]
    lines.append(f"names are in {workspace.names} and in all results; load the page again to see them")
    return "\n".join(["", *lines])


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


def estimate(workspace: Workspace, parameters: Parameters, observer: Observer) -> str:
    """Say what training will take."""
    try:
        costs = cost.estimate(workspace, parameters, observer)
    finally:
        show_cursor()
    on_gpu = costs["pretrain"].device_memory is not None
    device = torch.cuda.get_device_name() if on_gpu else f"the CPU (threads: {torch.get_num_threads()})"
    free = shutil.disk_usage(workspace.scratch).free
    return "\n".join(["", *cost.report(costs, device, free, machine_memory())])
