"""ablate: the rows of the paper's Table 2 on the packed store, over several seeds; table, scores and curves."""

import csv
import statistics
from collections.abc import Mapping, Sequence

from conr.data.store import open_store
from conr.errors import UserError
from conr.files import atomic_file
from conr.parameters import ParamsFile
from conr.progress import Progress
from conr.report.paper_figures import score_curves
from conr.report.published import RunFacts, beside
from stages.experiments import Experiment, Outcome, default_jobs, run_experiments
from stages.paths import ABLATION, STORE
from stages.report import run_facts

SCORES = {"nmi": "NMI", "acc": "ACC", "ari": "ARI"}  # in the paper's order
TICK = "✓"
PARTS = ("InC", "LN", "ConAff", "OBD", "PR")
LEGEND = (
    "InC: instance concordance, LN: local (Euclidean) neighbours, ConAff: contextually affinitive neighbours, "
    "OBD: online boundary detection (the filter), PR: its progressive relaxation"
)


def row(neighbours: str, boundary_filter: str) -> Experiment:
    """A row of Table 2, named by its parts."""
    parts = ["InC"] + {"none": [], "local": ["LN"], "conaff": ["ConAff"]}[neighbours]
    parts += {"none": [], "fixed": ["OBD"], "relaxed": ["OBD", "PR"]}[boundary_filter]
    changes = {"neighbourhood.neighbours": neighbours, "boundary.filter": boundary_filter}
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


def run(params: ParamsFile, seeds: Sequence[int], jobs: int, progress: Progress) -> str:
    """Run all rows with all seeds on the packed store; write table, scores, and the curves of Fig. 3c.

    Returns the table.
    """
    store = open_store(STORE)
    if store.labels is None:
        raise UserError(
            "the store holds no labels, so the rows cannot be scored; set prepare.labels, then conr prepare"
        )
    outcomes = run_experiments(params, ROWS, seeds, jobs or default_jobs(params.device), progress)
    ABLATION.mkdir(parents=True, exist_ok=True)
    _write_runs(outcomes, seeds)
    compared = {name: [outcome.curve for outcome in outcomes[name]] for name in (ROWS[0].name, ROWS[-1].name)}
    score_curves(compared, ABLATION / "curves.png")
    table = "\n".join(_table(outcomes, run_facts(store.manifest, params.clusters), seeds))
    with atomic_file(ABLATION / "table.md") as temporary:
        temporary.write_text(table + "\n", encoding="utf-8")
    return f"\n{table}\n\ntable, scores of every run and curves in {ABLATION}/"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation in percent, as the paper counts; one value stands alone."""
    percent = [100 * value for value in values]
    if len(percent) == 1:
        return f"{percent[0]:.1f}"
    return f"{statistics.mean(percent):.1f} ± {statistics.stdev(percent):.1f}"


def _table(outcomes: Mapping[str, list[Outcome]], facts: RunFacts, seeds: Sequence[int]) -> list[str]:
    """Table 2 as the paper lays it out, in Markdown, with the paper's numbers where they can be compared."""
    published = {entry.method.split(" (")[0]: entry for entry in beside(facts)[0] if entry.place == "Table 2"}
    heads = [*PARTS, *SCORES.values(), "ACC median"] + (["paper: NMI", "ACC", "ARI"] if published else [])
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in ROWS:
        results = [outcome.finetuned for outcome in outcomes[row.name]]
        cells = [TICK if part in row.name.split(" + ") else "" for part in PARTS]
        cells += [mean_and_deviation([result[score] for result in results]) for score in SCORES]
        cells.append(f"{100 * statistics.median(result['acc'] for result in results):.1f}")
        if published:
            entry = published[row.name]
            cells += [f"{value:.1f}" for value in (entry.nmi, entry.acc, entry.ari) if value is not None]
        lines.append(f"| {' | '.join(cells)} |")
    count = "one seed, which proves nothing" if len(seeds) == 1 else f"mean ± standard deviation of {len(seeds)} seeds"
    return [*lines, "", f"Percent; {count} ({', '.join(map(str, seeds))}). {LEGEND}."]


def _write_runs(outcomes: Mapping[str, list[Outcome]], seeds: Sequence[int]) -> None:
    with (
        atomic_file(ABLATION / "runs.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "seed", *SCORES, *(f"pretrained_{score}" for score in SCORES)])
        for name, row in outcomes.items():
            for seed, outcome in zip(seeds, row, strict=True):
                scores = [outcome.finetuned[score] for score in SCORES] + [outcome.pretrained[s] for s in SCORES]
                writer.writerow([name, seed, *(f"{score:.4f}" for score in scores)])
