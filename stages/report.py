"""What evaluate shows to a person: the figures and the page, made from the results."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.data.store import Manifest, Store
from conr.evaluation import Evaluation
from conr.metrics import contingency, matching
from conr.parameters import EvaluateStage
from conr.report import figures
from conr.report.page import ClusterCard, Report, Sample
from conr.report.published import Published, RunFacts, beside
from conr.training.log import read_log
from stages.paths import FIGURES, FINETUNE_LOG, PRETRAIN_LOG
from stages.results import Results

PRETRAINED, FINETUNED = "pretrained", "fine-tuned (ConNR)"
COLUMNS = {
    "acc": "ACC",
    "nmi": "NMI",
    "ari": "ARI",
    "class_acc": "class ACC",
    "silhouette": "silhouette",
    "balance": "balance",
}
PUBLISHED = {"nmi": "NMI", "acc": "ACC", "ari": "ARI"}  # in the order of the paper's table
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
    scored = store.scored_labels
    assert scored is not None
    known = scored >= 0
    labels, clusters = scored[known], result.placement.assignments[known]
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


def score_rows(results: Results) -> list[dict[str, str]]:
    """The table of scores: before ConNR, after it for each seed, and mean ± standard deviation of several."""
    rows = [{"features": PRETRAINED} | formatted(results.pretrained.scores)]
    if len(results.finetuned) == 1:
        return [*rows, {"features": FINETUNED} | formatted(results.first.scores)]
    rows += [
        {"features": f"seed {seed}"} | formatted(evaluation.scores) for seed, evaluation in results.finetuned.items()
    ]
    deviation = formatted(results.deviation())
    mean = {title: f"{value} ± {deviation[title]}" for title, value in formatted(results.mean()).items()}
    return [*rows, {"features": f"{FINETUNED}, mean"} | mean]


def seeds_note(results: Results) -> str:
    """How far the scores can be trusted."""
    seeds = ", ".join(map(str, results.finetuned))
    if len(results.finetuned) == 1:
        return f"One seed ({seeds}): other seeds give other scores; seeds: [0, 1, 2] gives mean ± standard deviation."
    return (
        f"Mean ± standard deviation of {len(results.finetuned)} seeds of fine-tuning and k-means ({seeds}) after one "
        "pretraining; figures, assignments and encoder are those of the first."
    )


def compose_report(
    results: Results, store: Store, parameters: EvaluateStage, precision: str, captions: list[tuple[str, Path]]
) -> Report:
    manifest, final = store.manifest, results.first
    facts = [
        ("images", f"{manifest.count:,}"),
        ("image size", f"{manifest.image_size}×{manifest.image_size}"),
        ("clusters", str(parameters.clusters)),
        ("precision of the encoder", precision),
        ("skipped files", f"{len(manifest.skipped):,}"),
        ("seed" if len(results.finetuned) == 1 else "seeds", ", ".join(map(str, results.finetuned))),
    ]
    if manifest.protocol != "all" or manifest.score_start > 0:
        facts.append(("trained on", f"{manifest.train_count:,} images"))
        facts.append(("scored on", f"{manifest.count - manifest.score_start:,} images"))
    names = label_names(store)
    cards = [_card(final, store, names, cluster, parameters.evaluate.gallery) for cluster in range(len(final.sizes))]
    published, differences = beside(run_facts(manifest, parameters.clusters))
    notes = [seeds_note(results), *_notes(final, store)]
    if differences:
        notes.append(f"Published numbers cannot stand beside this run: {'; '.join(differences)}.")
    mean, deviation = results.mean(), results.deviation()
    own = {title: f"{100 * mean[name]:.1f}" for name, title in PUBLISHED.items() if name in mean}
    if "acc" in deviation:
        own["ACC"] += f" ± {100 * deviation['acc']:.1f} ({len(results.finetuned)} seeds)"
    table = published_table(own, published)
    return Report(f"Clusters of {manifest.source}", facts, score_rows(results), notes, captions, cards, table)


def run_facts(manifest: Manifest, clusters: int) -> RunFacts:
    """What decides which published numbers may stand beside a run with so many clusters on this store."""
    return RunFacts(
        dataset=manifest.dataset,
        scored_images=manifest.count - manifest.score_start,
        image_size=manifest.image_size,
        protocol=manifest.protocol,
        imbalance=manifest.imbalance,
        clusters=clusters,
    )


def published_table(own: dict[str, str], published: list[Published]) -> list[dict[str, str]]:
    """Published results as rows of the page, this run first; empty if either has no scores.

    Args:
        own: this run's NMI, ACC and ARI in percent, by title.
        published: results that may stand beside it.
    """
    if not (own and published):
        return []
    rows = [{"method": "this run (ConNR)", **own, "architecture": "", "source": ""}]
    for result in published:
        spread = "" if result.acc_std is None else f" ± {result.acc_std:.1f} ({result.seeds} seeds)"
        rows.append(
            {
                "method": result.method,
                "NMI": _percent(result.nmi),
                "ACC": _percent(result.acc) + spread,
                "ARI": _percent(result.ari),
                "architecture": result.architecture,
                "source": f"{result.source}, {result.place}",
            }
        )
    return rows


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


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
    notes = []
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
    scored = store.scored_labels
    assert scored is not None
    known = scored >= 0
    matched = matching(scored[known], result.placement.assignments[known])
    names = {cluster: store.manifest.class_names[label] for cluster, label in matched.items()}
    return {cluster: names.get(cluster, f"cluster {cluster}") for cluster in range(len(result.sizes))}
