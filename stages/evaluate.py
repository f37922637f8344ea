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
from stages.paths import (
    ASSIGNMENTS,
    CENTROIDS,
    EMBEDDINGS,
    FIGURES,
    METRICS,
    PLOTS,
    PRETRAINED_EMBEDDINGS,
    REPORT,
    STORE,
    SUMMARY,
)
from stages.report import (
    COLUMNS,
    NO_LABELS,
    STAGES,
    cluster_names,
    compose_report,
    draw_figures,
    formatted,
    label_names,
)
from stages.tables import write_assignments

TASKS = 6  # units of progress: two evaluations, the tables, the map, the figures, the page


def run(parameters: EvaluateStage, progress: Progress) -> str:
    """Cluster the embeddings before and after ConNR and write all results; returns the summary."""
    store = open_store(STORE)
    results: dict[str, Evaluation] = {}
    with progress("evaluate", TASKS) as advance:
        for name, path in (("pretrained", PRETRAINED_EMBEDDINGS), ("finetuned", EMBEDDINGS)):
            embeddings = _open_embeddings(path, store)
            results[name] = evaluate(
                embeddings,
                store.labels,
                parameters.clusters,
                restarts=parameters.evaluate.restarts,
                iterations=parameters.evaluate.iterations,
                seed=parameters.seed,
            )
            advance(1, note=f"{name}: k-means, scores")
        final = results["finetuned"]
        for folder in (FIGURES, PLOTS):
            folder.mkdir(parents=True, exist_ok=True)
        _write_metrics(results, store)
        labels = None if store.labels is None else label_names(store)
        write_assignments(ASSIGNMENTS, store.manifest.files, final.placement, labels)
        np.save(CENTROIDS, final.centroids)
        _write_plots(final, store)
        advance(1, note="tables")
        positions, chosen = embedding_map(embeddings, parameters.seed)
        advance(1, note="map")
        captions = draw_figures(final, store, positions, chosen, parameters.evaluate.gallery)
        advance(1, note="figures")
        write_page(compose_report(results, store, parameters, captions), REPORT)
        advance(1, note="report")
    summary = _summary(results, store)
    SUMMARY.write_text(summary + "\n", encoding="utf-8")
    return f"\n{summary}"


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


def _write_metrics(results: dict[str, Evaluation], store: Store) -> None:
    before, after = results["pretrained"].scores, results["finetuned"].scores
    metrics = {
        "images": store.manifest.count,
        **_rounded(after),
        "pretrained": _rounded(before),
        "gain": _rounded({name: after[name] - before[name] for name in COLUMNS if name in after and name in before}),
    }
    METRICS.parent.mkdir(parents=True, exist_ok=True)
    METRICS.write_text(json.dumps(metrics, indent=2) + "\n")


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    """Scores with the digits that mean something."""
    return {name: round(value, 4) for name, value in scores.items()}


def _write_plots(result: Evaluation, store: Store) -> None:
    """Tables for `dvc plots`: cluster sizes, and label against matched cluster."""
    with (PLOTS / "cluster_sizes.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["cluster", "images"])
        writer.writerows(enumerate(result.sizes))
    with (PLOTS / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "cluster"])
        if store.labels is not None:
            names = cluster_names(result, store)
            pairs = zip(label_names(store), result.placement.assignments, strict=True)
            writer.writerows((label, names[cluster]) for label, cluster in pairs if label)


def _summary(results: dict[str, Evaluation], store: Store) -> str:
    titles = list(formatted(results["finetuned"].scores))
    lines = [f"{'':20}" + "".join(f"{title:>12}" for title in titles)]
    for name, result in results.items():
        values = formatted(result.scores)
        lines.append(f"{STAGES[name]:20}" + "".join(f"{values.get(title, '–'):>12}" for title in titles))
    if store.labels is None:
        lines.append(NO_LABELS)
    lines += [
        "",
        f"report       {REPORT}",
        f"figures      {FIGURES}/",
        f"assignments  {ASSIGNMENTS}",
    ]
    return "\n".join(lines)
