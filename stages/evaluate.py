"""evaluate: embeddings → clusters, scores, figures, the report and the table of assignments."""

import csv
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.data.store import Store, open_store
from conr.errors import UserError
from conr.evaluation import Evaluation, embedding_map, evaluate
from conr.parameters import EvaluateStage
from conr.progress import Progress
from conr.report.page import write_page
from stages.neighbour_figures import check_context, draw_neighbours
from stages.paths import (
    ASSIGNMENTS,
    CENTROIDS,
    CLUSTERED,
    EMBEDDED,
    EMBEDDINGS,
    FIGURES,
    FURTHER_EMBEDDINGS,
    METRICS,
    PLOTS,
    PRETRAINED_EMBEDDINGS,
    REPORT,
    STORE,
    SUMMARY,
)
from stages.report import NO_LABELS, cluster_names, compose_report, draw_figures, label_names, score_rows, seeds_note
from stages.results import Results
from stages.tables import aligned, write_assignments

TASKS = 5  # units of progress beside the evaluations: the tables, the map, the figures, the neighbours, the page


def run(parameters: EvaluateStage, progress: Progress) -> str:
    """Cluster the embeddings before and after ConNR and write all results; returns the summary.

    Figures, page and assignments show the first seed.
    """
    store = open_store(STORE)
    check_context(parameters, store)
    first, *further = seeds = parameters.seeds or [parameters.seed]
    precision, encoder = _embedded(seeds)
    jobs = [(PRETRAINED_EMBEDDINGS, parameters.seed), (EMBEDDINGS, first)]
    jobs += [(FURTHER_EMBEDDINGS / f"{seed}.npy", seed) for seed in further]
    with progress("evaluate", TASKS + len(jobs)) as advance:
        evaluations = []
        for path, seed in jobs:
            evaluations.append(_evaluate(_open_embeddings(path, store), store, parameters, seed))
            advance(1, note=f"{path.stem}: k-means, scores")
        results = Results(evaluations[0], dict(zip([first, *further], evaluations[1:], strict=True)))
        for folder in (FIGURES, PLOTS):
            folder.mkdir(parents=True, exist_ok=True)
        METRICS.write_text(json.dumps(results.metrics(store.manifest.count), indent=2) + "\n")
        final = results.first
        labels = None if store.labels is None else label_names(store)
        write_assignments(ASSIGNMENTS, store.manifest.files, final.placement, labels)
        np.save(CENTROIDS, final.centroids)
        CLUSTERED.write_text(json.dumps({"encoder": encoder}) + "\n")
        _write_plots(final, store)
        advance(1, note="tables")
        positions, chosen = embedding_map(_open_embeddings(EMBEDDINGS, store), first)
        advance(1, note="map")
        captions = draw_figures(final, store, positions, chosen, parameters.evaluate.gallery)
        advance(1, note="figures")
        before = _open_embeddings(PRETRAINED_EMBEDDINGS, store)
        captions += draw_neighbours(before, results.pretrained, store, parameters)
        advance(1, note="neighbours")
        write_page(compose_report(results, store, parameters, precision, captions), REPORT)
        advance(1, note="report")
    summary = _summary(results, store, precision)
    SUMMARY.write_text(summary + "\n", encoding="utf-8")
    return f"\n{summary}"


def _embedded(seeds: list[int]) -> tuple[str, str]:
    """The precision of the embeddings and the hash of the first seed's encoder; checks that they are of these seeds."""
    try:
        embedded = json.loads(EMBEDDED.read_text())
        found, precision, encoder = embedded["seeds"], str(embedded["precision"]), str(embedded["encoder"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{EMBEDDED} is missing or not whole ({error}); run conr extract again") from error
    if found != seeds:
        raise UserError(f"the embeddings are of seeds {found}, not {seeds}; run conr finetune and conr extract first")
    return precision, encoder


def _evaluate(embeddings: NDArray[np.float32], store: Store, parameters: EvaluateStage, seed: int) -> Evaluation:
    return evaluate(
        embeddings,
        store.labels,
        parameters.clusters,
        restarts=parameters.evaluate.restarts,
        iterations=parameters.evaluate.iterations,
        seed=seed,
        clustered=store.clustered,
        scored=store.scored,
    )


def _open_embeddings(path: Path, store: Store) -> NDArray[np.float32]:
    try:
        embeddings: NDArray[np.float32] = np.load(path, mmap_mode="c")
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is missing or not whole ({error}); run conr extract again") from error
    if len(embeddings) != store.manifest.count:
        raise UserError(
            f"{path} holds {len(embeddings)} embeddings, {STORE} {store.manifest.count} images; run conr extract again"
        )
    return embeddings


def _write_plots(result: Evaluation, store: Store) -> None:
    """Tables for `dvc plots`: cluster sizes, and label against matched cluster."""
    with (PLOTS / "cluster_sizes.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["cluster", "images"])
        writer.writerows(enumerate(result.sizes))
    # A folder that is a label may have a name that is no text; DVC draws nothing of a table that is not UTF-8.
    with (PLOTS / "confusion.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "cluster"])
        if store.labels is not None:
            names = cluster_names(result, store)
            pairs = zip(label_names(store)[store.scored], result.placement.assignments[store.scored], strict=True)
            writer.writerows((label, names[cluster]) for label, cluster in pairs if label)


def _summary(results: Results, store: Store, precision: str) -> str:
    rows = score_rows(results)
    titles = [title for title in rows[-1] if title != "features"]
    table = [["", *titles]] + [[row["features"], *(row.get(title, "–") for title in titles)] for row in rows]
    lines = [*aligned(table), "", seeds_note(results)]
    if store.labels is None:
        lines.append(NO_LABELS)
    if precision != "float32":
        lines.append(f"All features come from {precision} encoders (extract.precision).")
    lines += [
        "",
        f"report       {REPORT}",
        f"figures      {FIGURES}/",
        f"assignments  {ASSIGNMENTS}",
    ]
    return "\n".join(lines)
