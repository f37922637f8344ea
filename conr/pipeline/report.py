"""The figures, the page and the summary of evaluate, made from the results."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from conr.data.store import Manifest, Store
from conr.evaluation.agreement import Agreement
from conr.evaluation.evaluate import Evaluation
from conr.evaluation.results import Results
from conr.evaluation.scores import SCORES, TABLE
from conr.parameters import EvaluateStage
from conr.pipeline.workspace import Workspace
from conr.report import figures
from conr.report.page import ClusterCard, Report, Sample
from conr.report.published import Benchmark, beside
from conr.training.log import read_log

NEARLY_EMPTY = 0.1  # share of the mean size below which a cluster is worth a warning
NO_LABELS = (
    "There are no labels, so accuracy cannot be known: silhouette and size entropy describe the clusters instead."
)


def draw_figures(
    workspace: Workspace,
    result: Evaluation,
    store: Store,
    positions: NDArray[np.float32],
    chosen: NDArray[np.int64],
    gallery: int,
    seed: int,
) -> list[tuple[str, Path]]:
    """Draw all figures of a seed; returns (caption, file) of each."""
    order = [result.typical(cluster)[:gallery] for cluster in range(len(result.sizes))]
    clusters = result.assignment.clusters[chosen]
    logs = read_log(workspace.pretrained.log), read_log(workspace.finetuned(seed).log)
    drawn = {
        "gallery": ("The most typical images of each cluster", figures.gallery_figure(store.images, order)),
        "map": ("All images, neighbors side by side (t-SNE)", figures.map_figure(positions, clusters)),
        "cluster_sizes": ("How many images each cluster holds", figures.sizes_figure(result.sizes)),
    }
    agreement = scored_agreement(result, store)
    if agreement is not None:
        drawn["confusion"] = "Labels against clusters", _confusion_figure(agreement, store)
    drawn["training"] = "Training, epoch by epoch", figures.training_figure(*logs)
    for name, (_, figure) in drawn.items():
        figures.save(figure, workspace.figures / f"{name}.png")
    return [(caption, workspace.figures / f"{name}.png") for name, (caption, _) in drawn.items()]


def _confusion_figure(agreement: Agreement, store: Store) -> Figure:
    """Matched clusters in the order of their classes, the others behind them."""
    matching, last = agreement.matching, len(agreement.classes)
    rows = {cluster: int(np.searchsorted(agreement.classes, label)) for cluster, label in matching.items()}
    columns = sorted(agreement.numbers.tolist(), key=lambda cluster: (rows.get(cluster, last), cluster))
    table = agreement.table[:, np.searchsorted(agreement.numbers, columns)]
    names = [store.class_name(label) for label in agreement.classes.tolist()]
    return figures.confusion_figure(table, names, columns)


def scored_agreement(result: Evaluation, store: Store) -> Agreement | None:
    """Labels against clusters of the images that are scored; None if no label is known."""
    if store.labels is None:
        return None
    labels, clusters = store.labels[store.scored], result.assignment.clusters[store.scored]
    return Agreement(labels[labels >= 0], clusters[labels >= 0]) if (labels >= 0).any() else None


def cluster_names(result: Evaluation, store: Store) -> list[str]:
    """For each cluster the class that the Hungarian matching gives it, or its number."""
    agreement = scored_agreement(result, store)
    matching = {} if agreement is None else agreement.matching
    return [
        store.class_name(matching[cluster]) if cluster in matching else f"cluster {cluster}"
        for cluster in range(len(result.sizes))
    ]


def compose_report(
    results: Results, store: Store, parameters: EvaluateStage, precision: str, captions: list[tuple[str, Path]]
) -> Report:
    """All that the page shows."""
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
    cards = [_card(final, store, cluster, parameters.evaluate.gallery) for cluster in range(len(final.sizes))]
    published, differences = beside(benchmark(manifest, parameters.clusters))
    notes = [seeds_note(results), *_notes(final, store)]
    if differences:
        notes.append(f"Published numbers are not comparable with this run: {'; '.join(differences)}.")
    return Report(f"Clusters of {manifest.source}", facts, results.rows(), notes, captions, cards, published)


def benchmark(manifest: Manifest, clusters: int) -> Benchmark:
    """What decides which published numbers a run with so many clusters on this store can be compared with."""
    return Benchmark(
        dataset=manifest.dataset,
        images=manifest.count - manifest.score_start,
        image_size=manifest.image_size,
        protocol=manifest.protocol,
        imbalance=manifest.imbalance,
        clusters=clusters,
    )


def summary(workspace: Workspace, results: Results, store: Store, precision: str) -> str:
    """The scores as text, and where the results are."""
    rows = results.rows()
    keys = [key for key in TABLE if any(key in row for row in rows.values())]
    table = [["", *(SCORES[key].title for key in keys)]]
    table += [[name, *(f"{row[key]:.3f}" if key in row else "–" for key in keys)] for name, row in rows.items()]
    lines = [*aligned(table), "", seeds_note(results)]
    if store.labels is None:
        lines.append(NO_LABELS)
    if precision != "float32":
        lines.append(f"All features come from {precision} encoders (extract.precision).")
    lines += [
        "",
        f"report       {workspace.report}",
        f"figures      {workspace.figures}/",
        f"assignments  {workspace.assignments}",
    ]
    return "\n".join(lines)


def seeds_note(results: Results) -> str:
    """How far the scores can be trusted."""
    seeds = ", ".join(map(str, results.finetuned))
    if len(results.finetuned) == 1:
        return f"One seed ({seeds}): other seeds give other scores; seeds: [0, 1, 2] gives mean ± standard deviation."
    return (
        f"Mean ± standard deviation of {len(results.finetuned)} seeds of fine-tuning and k-means ({seeds}) after one "
        "pretraining; figures, assignments and encoder are those of the first."
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text: the first cell of each row on the left, the others under each other on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        name.ljust(widths[0]) + "".join(cell.rjust(width + 3) for cell, width in zip(cells, widths[1:], strict=True))
        for name, *cells in rows
    ]


def _card(result: Evaluation, store: Store, cluster: int, shown: int) -> ClusterCard:
    assignment, typical = result.assignment, result.typical(cluster)
    ratios = assignment.boundary_ratio

    def label(index: int) -> str:
        return "" if store.labels is None else store.class_name(int(store.labels[index]))

    def sample(index: int) -> Sample:
        return Sample(
            file=store.manifest.files[index],
            pixels=np.asarray(store.images[index]),
            boundary_ratio=float(ratios[index]),
            label=label(index) or None,
            next_cluster=int(assignment.next_cluster[index]),
        )

    labels = Counter(sorted(name for name in map(label, typical) if name))
    majority, most = labels.most_common(1)[0] if labels else (None, 0)
    borderline = sorted(typical, key=lambda index: -ratios[index])
    return ClusterCard(
        number=cluster,
        size=len(typical),
        share=len(typical) / store.manifest.count,
        uncertainty=float(ratios[typical].mean()) if typical else 0.0,
        label=majority,
        label_share=most / max(labels.total(), 1),
        typical=[sample(index) for index in typical[:shown]],
        borderline=[sample(index) for index in borderline[: shown // 2]],
    )


def _notes(result: Evaluation, store: Store) -> list[str]:
    notes = []
    if store.labels is None:
        notes.append(NO_LABELS)
    else:
        notes.append("Labels were used for scores only.")
    for cluster, size in enumerate(result.sizes):
        if size < NEARLY_EMPTY * result.sizes.mean():
            notes.append(f"Cluster {cluster} is nearly empty ({size} images): there may be fewer groups than clusters.")
    return notes
