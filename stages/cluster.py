"""conr cluster, and conr clusters: a folder in groups, and how many groups there may be."""

from pathlib import Path

import typer

from conr.data.store import load_manifest
from conr.embedding.engines.settings import Engine
from conr.files import load_array
from conr.observer import Observer
from conr.parameters import Parameters
from conr.pipeline import cluster_folder
from conr.pipeline.cluster_folder import Plan
from conr.pipeline.recluster import recluster
from conr.pipeline.reproduce import reproduce
from conr.pipeline.workspace import Workspace
from conr.processes import cores
from conr.text import counted, printable

from .engines import engine_variables

RESUME = "run the same command to resume"
RERUN = "run the same command again to group what it holds now"


def cluster(
    workspace: Workspace,
    folder: Path,
    clusters: str | None,
    output: Path | None,
    backbone: str | None,
    refine: bool,
    labels: str | None,
    engine: Engine,
    observer: Observer,
) -> str:
    """Plan, say what will be done, and run all stages; returns the summary."""
    plan = cluster_folder.plan(folder, clusters, output, backbone, refine, labels)
    typer.echo(printable(announcement(plan), keep="\n"))
    cluster_folder.prepare_project(plan, backbone)
    outdated = plan.workspace.store.exists() and cluster_folder.has_changed(plan)
    code = reproduce(plan.project, anew="prepare" if outdated else "", variables=engine_variables(engine))
    if code:
        cluster_folder.remove_unused(plan)
        raise typer.Exit(code)
    return summary(plan)


def clusters(workspace: Workspace, parameters: Parameters, number: str, observer: Observer) -> str:
    """Compare numbers of clusters, and make the results with one; returns the summary."""
    _, proposal = recluster(workspace, parameters, number, observer)
    lines = []
    if proposal is not None:
        choices = [
            f"{criterion} {'none' if choice is None else choice}" for criterion, choice in proposal.choices.items()
        ]
        lines.append(f"{proposal.clusters} clusters proposed ({', '.join(choices)}); curves in {workspace.proposals}")
        if not proposal.clear:
            lines.append("No number stands out: look at the page, and try others.")
    lines.append(workspace.summary.read_text(encoding="utf-8").rstrip())
    return "\n" + "\n".join(lines)


def announcement(plan: Plan) -> str:
    """What will be done, how long it takes and why."""
    parameters, (width, height) = plan.parameters, plan.typical
    size, network = parameters.prepare.image_size, parameters.network
    if network.is_frozen:
        features = f"describe each by {network.backbone}, a network that stays as it is"
    else:
        features = f"train a network on them for {parameters.pretrain.epochs} epochs (BYOL)"
    number = parameters.clusters
    refine = f"{parameters.finetune.epochs} epochs of ConNR" if parameters.finetune.epochs else ""
    number_of = "" if isinstance(number, int) else "propose a number of groups"
    groups = f"{number} groups" if isinstance(number, int) else "groups"
    lines = [
        f"{counted(plan.images, 'image')} in {plan.folder}, typically {width}×{height} pixels. conr will",
        f"  prepare   pack them as {size}×{size} pixels",
        f"  pretrain  {features}",
        f"  finetune  {' and run '.join(filter(None, (number_of, refine))) or 'change nothing (no --refine)'}",
        "  extract   write the encoder as ONNX, and the embedding of each image",
        f"  evaluate  make {groups}, by k-means and by the graph of neighbors, and draw the page",
        f"{_duration(plan)} Everything is written to {plan.project}.",
        f"Press Ctrl-C to stop; {RESUME}, which computes only what is missing.",
    ]
    return "\n".join(lines)


def _duration(plan: Plan) -> str:
    if plan.seconds is None:
        return "Training takes long on a CPU: run conr estimate in the project after prepare to see how long."
    seconds = sum(plan.seconds.values())
    about = f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"
    slowest = max(plan.seconds, key=plan.seconds.__getitem__)
    return f"This takes about {about} on {cores()} cores, most of it for {slowest}."


def summary(plan: Plan) -> str:
    """What was grouped, where the results are and what can be done with them."""
    workspace, manifest = plan.workspace, load_manifest(plan.workspace.store)
    number = len(load_array(workspace.centroids, "run the same command again"))
    skipped = f"; {counted(len(manifest.skipped), 'file')} skipped, the page says why" if manifest.skipped else ""
    changed = (
        [f"Note: {plan.folder} has changed since it was read; {RERUN}"] if cluster_folder.has_changed(plan) else []
    )
    return "\n".join(
        [
            f"{counted(manifest.count, 'image')} in {counted(number, 'group')}{skipped}",
            *changed,
            f"table   {workspace.assignments}",
            f"page    {workspace.report}",
            f"Next, in {plan.project}:",
            "  conr clusters 2-40                     try other numbers of groups",
            '  conr name 3 "red shoes"                name group 3',
            "  conr sort FOLDER                       copy the images into one folder per group",
            "  conr assign NEW --sort-into FOLDER     sort new images into the same groups",
        ]
    )
