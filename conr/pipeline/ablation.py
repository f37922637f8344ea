"""The rows of the paper's Table 2 on the packed store, over several seeds; table, scores and curves."""

import statistics
from collections.abc import Iterator, Mapping, Sequence

from conr.data.store import open_store
from conr.embedding.engines.ray_cluster import cluster_address
from conr.embedding.engines.settings import LOCAL, Engine
from conr.errors import UserError
from conr.evaluation.scores import SCORES, MeanStd
from conr.files import write_table, write_text
from conr.observer import SILENT, Observer
from conr.parameters import Parameters
from conr.pipeline.experiments import Experiment, Outcome, run_experiments
from conr.pipeline.report import benchmark
from conr.pipeline.workspace import Workspace, writes
from conr.report.figures import save
from conr.report.paper_figures import score_curves_figure
from conr.report.published import Benchmark, beside
from conr.training.compute import Compute, machine

COLUMNS = ("nmi", "acc", "ari")  # in the paper's order
TICK = "✓"
PARTS = ("InC", "LN", "ConAff", "OBD", "PR")
LEGEND = (
    "InC: instance concordance, LN: local (Euclidean) neighbors, ConAff: contextually affinitive neighbors, "
    "OBD: online boundary detection (the filter), PR: its progressive relaxation"
)


def row(neighbors: str, boundary_filter: str) -> Experiment:
    """A row of Table 2, named by its parts."""
    parts = ["InC"] + {"none": [], "local": ["LN"], "conaff": ["ConAff"]}[neighbors]
    parts += {"none": [], "fixed": ["OBD"], "relaxed": ["OBD", "PR"]}[boundary_filter]
    changes = {"neighborhood.neighbors": neighbors, "boundary.filter": boundary_filter}
    return Experiment(" + ".join(parts), changes)


ROWS = (
    row("none", "none"),
    row("local", "none"),
    row("conaff", "none"),
    row("local", "fixed"),
    row("local", "relaxed"),
    row("conaff", "fixed"),
    row("conaff", "relaxed"),
)


@writes
def ablate(
    workspace: Workspace,
    parameters: Parameters,
    seeds: Sequence[int],
    rows: Sequence[int] = range(1, len(ROWS) + 1),
    jobs: int = 0,
    observer: Observer = SILENT,
    engine: Engine = LOCAL,
) -> str:
    """Run rows with all seeds on the packed store; write table, scores, and the curves of Fig. 3c.

    Args:
        workspace: whose store is trained on, and where the results go.
        parameters: what the rows have in common.
        seeds: every row is run with each.
        rows: numbers of the rows, from 1.
        jobs: trainings side by side; 0 for one per CPU core, or per GPU where they use GPUs.
        observer: notified of the epochs of all runs.
        engine: where the rows are trained.

    Returns:
        The table, in Markdown.

    Raises:
        UserError: the store has no labels, parameters contradict each other, or a run failed.
    """
    store = open_store(workspace.store)
    if store.labels is None:
        raise UserError(
            "the store holds no labels, so the rows cannot be scored; set prepare.labels, then conr prepare"
        )
    if isinstance(parameters.clusters, str) or parameters.network.is_frozen or not parameters.finetune.epochs:
        raise UserError(
            "the rows of the table train a network for a given number of clusters: set clusters to a number, "
            "network.backbone: scratch, and finetune.epochs above 0"
        )
    if not rows or not set(rows) <= set(range(1, len(ROWS) + 1)):
        raise UserError(f"--rows {', '.join(map(str, rows))} should be numbers from 1 to {len(ROWS)}")
    chosen = [ROWS[number - 1] for number in sorted(set(rows))]
    outcomes = run_experiments(workspace, parameters, chosen, seeds, jobs, observer, engine)
    heads = ["row", "seed", *COLUMNS, *(f"pretrained_{key}" for key in COLUMNS), "seconds"]
    write_table(workspace.ablation / "runs.csv", heads, _runs(outcomes, seeds))
    compared = {name: [outcome.curve for outcome in outcomes[name]] for name in (chosen[0].name, chosen[-1].name)}
    save(score_curves_figure(compared), workspace.ablation / "curves.png")
    lines = table(outcomes, benchmark(store.manifest, parameters.number), seeds)
    cluster = cluster_address(engine.address) if engine.name == "ray" else None
    where = f"the Ray cluster {cluster}" if cluster else machine(Compute.choose(parameters.device, "float32").device)
    text = "\n".join([*lines, "", f"Last run on {where}."])
    write_text(workspace.ablation / "table.md", text + "\n")
    return text


def table(outcomes: Mapping[str, list[Outcome]], facts: Benchmark, seeds: Sequence[int]) -> list[str]:
    """Table 2 as the paper lays it out, in Markdown, with the paper's numbers where they can be compared."""
    published = {entry.method.split(" (")[0]: entry for entry in beside(facts)[0] if entry.place == "Table 2"}
    heads = [*PARTS, *(SCORES[key].title for key in COLUMNS), "ACC median"]
    heads += ["paper: NMI", "ACC", "ARI"] if published else []
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, of_seeds in outcomes.items():
        results = [outcome.finetuned for outcome in of_seeds]
        cells = [TICK if part in name.split(" + ") else "" for part in PARTS]
        cells += [f"{MeanStd.of((result[key] for result in results), scale=100):.1f}" for key in COLUMNS]
        cells.append(f"{100 * statistics.median(result['acc'] for result in results):.1f}")
        if published:
            entry = published[name]
            cells += [f"{value:.1f}" for value in (entry.nmi, entry.acc, entry.ari) if value is not None]
        lines.append(f"| {' | '.join(cells)} |")
    listed = ", ".join(map(str, seeds))
    several = f"mean ± standard deviation of {len(seeds)} seeds ({listed})"
    note = several if len(seeds) > 1 else f"one seed ({listed}); other seeds give other scores"
    return [*lines, "", f"Percent; {note}. {LEGEND}."]


def _runs(outcomes: Mapping[str, list[Outcome]], seeds: Sequence[int]) -> Iterator[list[object]]:
    """A row of runs.csv for each row of the table and seed; the seconds are those of both trainings."""
    for name, of_seeds in outcomes.items():
        for seed, outcome in zip(seeds, of_seeds, strict=True):
            scores = [scores[key] for scores in (outcome.finetuned, outcome.pretrained) for key in COLUMNS]
            seconds = sum(epoch["seconds"] for epoch in [*outcome.pretraining, *outcome.curve])
            yield [name, seed, *(f"{score:.4f}" for score in scores), round(seconds)]
