"""evaluate: embeddings → clusters, scores, figures, the report and the table of assignments."""

import csv
import json
from pathlib import Path

import numpy as np
from conr.report.page import ClusterCard, Report, Sample, write_page
from numpy.typing import NDArray

from conr.data.store import Store, open_store
from conr.errors import UserError
from conr.evaluation import Evaluation, embedding_map, evaluate
from conr.metrics import contingency, matching
from conr.parameters import EvaluateStage
from conr.progress import Progress
from conr.report import figures
from conr.training.log import read_log
from stages.paths import (
    ASSIGNMENTS,
    CENTROIDS,
    EMBEDDINGS,
    FIGURES,
    FINETUNE_LOG,
    METRICS,
    PLOTS,
    PRETRAIN_LOG,
    PRETRAINED_EMBEDDINGS,
    REPORT,
    STORE,
)
from stages.tables import write_assignments

STAGES = {"pretrained": "pretrained (BYOL)", "finetuned": "fine-tuned (ConNR)"}
COLUMNS = {"acc": "ACC", "nmi": "NMI", "ari": "ARI", "silhouette": "silhouette", "balance": "balance"}
TASKS = 6  # units of progress: two evaluations, the tables, the map, the figures, the page
NEARLY_EMPTY = 0.1  # share of the mean size below which a cluster is worth a warning


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
        _write_metrics(results, store, parameters)
        labels = None if store.labels is None else _label_names(store)
        write_assignments(ASSIGNMENTS, store.manifest.files, final.placement, labels)
        np.save(CENTROIDS, final.centroids)
        _write_plots(final, store)
        advance(1, note="tables")
        positions, chosen = embedding_map(embeddings, parameters.seed)
        advance(1, note="map")
        captions = _draw_figures(final, store, positions, chosen, parameters.evaluate.gallery)
        advance(1, note="figures")
        write_page(_report(results, store, parameters, captions), REPORT)
        advance(1, note="report")
    return _summary(results, store)


def _open_embeddings(path: Path, store: Store) -> NDArray[np.float32]:
    try:
        embeddings: NDArray[np.float32] = np.load(path, mmap_mode="c")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or not whole ({error}); run conr extract again") from error
    if len(embeddings) != store.manifest.count:
        raise UserError(
            f"{path} holds {len(embeddings)} embeddings, {STORE} {store.manifest.count} images; run conr extract again"
        )
    return embeddings


def _write_metrics(results: dict[str, Evaluation], store: Store, parameters: EvaluateStage) -> None:
    before, after = results["pretrained"].scores, results["finetuned"].scores
    metrics = {
        "images": store.manifest.count,
        "clusters": parameters.clusters,
        **_rounded(after),
        "pretrained": _rounded(before),
        "gain": _rounded({name: after[name] - before[name] for name in COLUMNS if name in after and name in before}),
    }
    METRICS.parent.mkdir(parents=True, exist_ok=True)
    METRICS.write_text(json.dumps(metrics, indent=2) + "\n")


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    """Scores with the digits that mean something."""
    return {name: round(value, 4) for name, value in scores.items()}


def _label_names(store: Store) -> list[str]:
    """The class name of every image, empty where unknown."""
    if store.labels is None:
        return [""] * store.manifest.count
    return [store.manifest.class_names[label] if label >= 0 else "" for label in store.labels]


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
            names = _cluster_names(result, store)
            pairs = zip(_label_names(store), result.placement.assignments, strict=True)
            writer.writerows((label, names[cluster]) for label, cluster in pairs if label)


def _cluster_names(result: Evaluation, store: Store) -> dict[int, str]:
    """Cluster → the class that the Hungarian matching gives it, or its number."""
    assert store.labels is not None
    known = store.labels >= 0
    matched = matching(store.labels[known], result.placement.assignments[known])
    names = {cluster: store.manifest.class_names[label] for cluster, label in matched.items()}
    return {cluster: names.get(cluster, f"cluster {cluster}") for cluster in range(len(result.sizes))}


def _draw_figures(
    result: Evaluation,
    store: Store,
    positions: NDArray[np.float32],
    chosen: NDArray[np.int64],
    gallery: int,
) -> list[tuple[str, Path]]:
    """Draw all figures; returns (caption, file) of each."""
    drawn: list[tuple[str, Path]] = []

    def add(name: str, caption: str) -> Path:
        drawn.append((caption, FIGURES / f"{name}.png"))
        return drawn[-1][1]

    order = [_typical(result, cluster)[:gallery] for cluster in range(len(result.sizes))]
    figures.gallery(store.images, order, add("gallery", "The most typical images of each cluster"))
    figures.embedding_map(
        positions, result.placement.assignments[chosen], add("map", "All images, neighbours side by side (t-SNE)")
    )
    figures.cluster_sizes(result.sizes, add("cluster_sizes", "How many images each cluster holds"))
    if store.labels is not None:
        _draw_confusion(result, store, add("confusion", "Labels against clusters"))
    curves = add("training", "Training, epoch by epoch")
    figures.training_curves(read_log(PRETRAIN_LOG), read_log(FINETUNE_LOG), curves)
    return drawn


def _draw_confusion(result: Evaluation, store: Store, path: Path) -> None:
    assert store.labels is not None
    known = store.labels >= 0
    labels, clusters = store.labels[known], result.placement.assignments[known]
    table = contingency(labels, clusters)
    present = np.unique(clusters).tolist()
    classes = np.unique(labels).tolist()
    matched = {cluster: classes.index(label) for cluster, label in matching(labels, clusters).items()}
    columns = sorted(present, key=lambda cluster: (matched.get(cluster, len(classes)), cluster))
    ordered = table[:, [present.index(cluster) for cluster in columns]]
    names = [store.manifest.class_names[label] for label in classes]
    figures.confusion(ordered, names, columns, path)


def _typical(result: Evaluation, cluster: int) -> list[int]:
    """The images of a cluster, those nearest to its centroid first."""
    members = np.flatnonzero(result.placement.assignments == cluster)
    ranked: list[int] = members[np.argsort(result.placement.own_distance[members], kind="stable")].tolist()
    return ranked


def _report(
    results: dict[str, Evaluation], store: Store, parameters: EvaluateStage, captions: list[tuple[str, Path]]
) -> Report:
    manifest, final = store.manifest, results["finetuned"]
    facts = [
        ("images", f"{manifest.count:,}"),
        ("image size", f"{manifest.image_size}×{manifest.image_size}"),
        ("clusters", str(parameters.clusters)),
        ("skipped files", f"{len(manifest.skipped):,}"),
        ("seed", str(parameters.seed)),
    ]
    rows = [{"features": STAGES[name]} | _formatted(result.scores) for name, result in results.items()]
    names = _label_names(store)
    cards = [_card(final, store, names, cluster, parameters.evaluate.gallery) for cluster in range(len(final.sizes))]
    return Report(f"Clusters of {manifest.source}", facts, rows, _notes(final, store), captions, cards)


def _card(result: Evaluation, store: Store, names: list[str], cluster: int, shown: int) -> ClusterCard:
    typical = _typical(result, cluster)
    borderline = sorted(typical, key=lambda index: -result.placement.boundary_ratio[index])

    def sample(index: int) -> Sample:
        return Sample(
            file=store.manifest.files[index],
            pixels=np.asarray(store.images[index]),
            boundary_ratio=float(result.placement.boundary_ratio[index]),
            label=names[index] or None,
            next_cluster=int(result.placement.next_cluster[index]),
        )

    return ClusterCard(
        number=cluster,
        size=len(typical),
        share=len(typical) / store.manifest.count,
        mean_boundary_ratio=float(result.placement.boundary_ratio[typical].mean()) if typical else 0.0,
        label=_majority([names[index] for index in typical if names[index]]),
        typical=[sample(index) for index in typical[:shown]],
        borderline=[sample(index) for index in borderline[: shown // 2]],
    )


def _majority(labels: list[str]) -> str | None:
    if not labels:
        return None
    values, counts = np.unique(labels, return_counts=True)
    return f"{values[counts.argmax()]} ({counts.max() / len(labels):.0%})"


def _notes(result: Evaluation, store: Store) -> list[str]:
    notes = ["The scores come from one run with one seed; other seeds give other scores."]
    if store.labels is None:
        notes.append(NO_LABELS)
    else:
        notes.append("Labels were read for scores only, after the clusters were settled.")
    for cluster, size in enumerate(result.sizes):
        if size < NEARLY_EMPTY * result.sizes.mean():
            notes.append(f"Cluster {cluster} is nearly empty ({size} images): there may be fewer groups than clusters.")
    return notes


NO_LABELS = "There are no labels, so accuracy cannot be known: silhouette and balance describe the clusters instead."


def _formatted(scores: dict[str, float]) -> dict[str, str]:
    return {title: f"{scores[name]:.3f}" for name, title in COLUMNS.items() if name in scores}


def _summary(results: dict[str, Evaluation], store: Store) -> str:
    titles = list(_formatted(results["finetuned"].scores))
    lines = [f"{'':20}" + "".join(f"{title:>12}" for title in titles)]
    for name, result in results.items():
        values = _formatted(result.scores)
        lines.append(f"{STAGES[name]:20}" + "".join(f"{values.get(title, '–'):>12}" for title in titles))
    if store.labels is None:
        lines.append(NO_LABELS)
    lines += [
        "",
        f"report       {REPORT.resolve()}",
        f"figures      {FIGURES.resolve()}",
        f"assignments  {ASSIGNMENTS.resolve()}",
    ]
    return "\n".join(lines)
