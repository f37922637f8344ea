"""evaluate: embeddings → clusters, scores, figures, the report and the table of assignments."""

import json

import numpy as np
from numpy.typing import NDArray

from conr.data.store import Store, open_store
from conr.errors import UserError
from conr.evaluation.evaluate import evaluate_store
from conr.evaluation.plane import embedding_map
from conr.evaluation.results import Results
from conr.files import load_array, load_json, save_array, write_table, write_text
from conr.observer import SILENT, Observer
from conr.parameters import EvaluateStage
from conr.pipeline.checks import check_data
from conr.pipeline.neighbor_figures import draw_neighbors
from conr.pipeline.page_parts import Extras
from conr.pipeline.publish import published
from conr.pipeline.records import of_embeddings, read_record, write_record
from conr.pipeline.report import cluster_names, draw_figures, draw_map, summary, write_report
from conr.pipeline.workspace import RECORD, Record, Workspace, writes
from conr.report.drawings import Drawings
from conr.training.log import read_log, write_log

TASKS = 5  # units of progress beside the evaluations: the tables, the map, the figures, the neighbors, the page
AGAIN = "run conr extract again"


@writes
def evaluate(workspace: Workspace, parameters: EvaluateStage, observer: Observer = SILENT) -> Results:
    """Cluster the embeddings before and after ConNR and write all results, which appear when all of them are there.

    Figures, page and assignments show the first seed. A figure that cannot be drawn is a note.

    Raises:
        UserError: store or embeddings are missing, damaged, or of other seeds.
    """
    parameters, store = EvaluateStage.of(parameters), open_store(workspace.store)
    check_data(parameters, store.manifest)
    first, *_ = seeds = parameters.all_seeds
    record = _record(workspace, seeds, store)
    precision = record.precision or "float32"
    with observer.task("evaluate", TASKS + 1 + len(seeds)):
        before = _embeddings(workspace, None, store)
        pretrained = evaluate_store(before, store, parameters, parameters.seed)
        observer.step_done(note="pretrained: k-means, scores")
        finetuned = {}
        for seed in seeds:
            finetuned[seed] = evaluate_store(_embeddings(workspace, seed, store), store, parameters, seed)
            observer.step_done(note=f"seed {seed}: k-means, scores")
        results = Results(pretrained, finetuned)
        with published(workspace) as new:
            _write_tables(workspace, new, results, store, record.made_from["encoder"])
            observer.step_done(note="tables")
            drawings = Drawings(new.figures)
            after = _embeddings(workspace, first, store)
            positions = embedding_map(after, first)
            draw_map(drawings, positions, results.first)
            observer.step_done(note="map")
            logs = read_log(workspace.pretrained.log), read_log(workspace.finetuned(first).log)
            draw_figures(drawings, results.first, store, logs, parameters.evaluate.gallery)
            observer.step_done(note="figures")
            draw_neighbors(drawings, new.plots, before, pretrained, store, parameters)
            observer.step_done(note="neighbors")
            extras = Extras(embeddings=after, positions=positions)
            notes = write_report(new.report, results, store, parameters, precision, drawings, extras)
            write_text(new.summary, summary(workspace, results, precision, notes) + "\n", "backslashreplace")
            observer.step_done(note="report")
    return results


def _record(workspace: Workspace, seeds: list[int], store: Store) -> Record:
    """What the embeddings are made from, if they are of these seeds and of the images and networks that are there."""
    found = load_json(workspace.embedded / RECORD, Record, AGAIN).seeds
    if found != seeds:
        raise UserError(f"the embeddings are of seeds {found}, not {seeds}; run conr finetune and conr extract first")
    return read_record(workspace.embedded, AGAIN, of_embeddings(workspace, store.manifest, seeds[0]))


def _embeddings(workspace: Workspace, seed: int | None, store: Store) -> NDArray[np.float32]:
    path = workspace.embeddings(seed)
    embeddings = load_array(path, AGAIN)
    if len(embeddings) != store.manifest.count:
        raise UserError(
            f"{path} holds {len(embeddings)} embeddings, {workspace.store} {store.manifest.count} images; {AGAIN}"
        )
    return embeddings


def _write_tables(workspace: Workspace, new: Workspace, results: Results, store: Store, encoder: str) -> None:
    """Scores, assignments and centroids; and the tables that DVC plots. Logs are read from the first workspace."""
    final, labels = results.first, store.label_names
    write_text(new.metrics, json.dumps(results.metrics(store.manifest.count), indent=2) + "\n")
    # Names on disk are bytes: one that is not UTF-8 is written unchanged.
    write_table(new.assignments, *final.assignment.table(store.manifest.files, labels), errors="surrogateescape")
    save_array(new.centroids, final.centroids)
    write_record(new.results, [new.centroids], list(results.finetuned), {"encoder": encoder})
    write_log(new.plots / "pretraining.csv", read_log(workspace.pretrained.log))
    write_log(new.plots / "finetuning.csv", read_log(workspace.finetuned(next(iter(results.finetuned))).log))
    write_table(new.plots / "cluster_sizes.csv", ["cluster", "images"], enumerate(final.sizes))
    pairs: list[tuple[str, str]] = []
    if labels is not None:
        scored = final.assignment.clusters[store.scored]
        names = cluster_names(final, store)
        pairs = [(label, names[cluster]) for label, cluster in zip(labels[store.scored], scored, strict=True) if label]
    # A folder that is a label may have a name that is no text; DVC plots no table that is not UTF-8.
    write_table(new.plots / "confusion.csv", ["label", "cluster"], pairs, errors="backslashreplace")
