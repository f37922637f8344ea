"""What evaluate shows to a person: the figures and the page, made from the results."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.data.store import Store
from conr.evaluation import Evaluation
from conr.metrics import contingency, matching
from conr.parameters import EvaluateStage
from conr.report import figures
from conr.report.page import ClusterCard, Report, Sample
from conr.training.log import read_log
from stages.paths import FIGURES, FINETUNE_LOG, PRETRAIN_LOG

STAGES = {"pretrained": "pretrained (BYOL)", "finetuned": "fine-tuned (ConNR)"}
COLUMNS = {"acc": "ACC", "nmi": "NMI", "ari": "ARI", "silhouette": "silhouette", "balance": "balance"}
NEARLY_EMPTY = 0.1  # share of the mean size below which a cluster is worth a warning
NO_LABELS = "There are no labels, so accuracy cannot be known: silhouette and balance describe the clusters instead."


def draw_figures(
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


def compose_report(
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
    rows = [{"features": STAGES[name]} | formatted(result.scores) for name, result in results.items()]
    names = label_names(store)
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


def formatted(scores: dict[str, float]) -> dict[str, str]:
    """The scores that people read, by their title."""
    return {title: f"{scores[name]:.3f}" for name, title in COLUMNS.items() if name in scores}


def label_names(store: Store) -> list[str]:
    """The class name of every image, empty where unknown."""
    if store.labels is None:
        return [""] * store.manifest.count
    return [store.manifest.class_names[label] if label >= 0 else "" for label in store.labels]


def cluster_names(result: Evaluation, store: Store) -> dict[int, str]:
    """Cluster → the class that the Hungarian matching gives it, or its number."""
    assert store.labels is not None
    known = store.labels >= 0
    matched = matching(store.labels[known], result.placement.assignments[known])
    names = {cluster: store.manifest.class_names[label] for cluster, label in matched.items()}
    return {cluster: names.get(cluster, f"cluster {cluster}") for cluster in range(len(result.sizes))}
