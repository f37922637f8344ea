"""The figures, the page and the summary of evaluate, made from the results."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from conr.data.store import Manifest, Store
from conr.evaluation.agreement import Agreement
from conr.evaluation.evaluate import Evaluation
from conr.evaluation.results import METHODS, Results
from conr.evaluation.scores import SCORES, TABLE
from conr.parameters import EvaluateStage
from conr.pipeline.page_parts import NO_EXTRAS, Extras, cards, groups_to_check, image_map, skipped_by_reason
from conr.pipeline.workspace import Workspace
from conr.report import figures
from conr.report.drawings import Drawings, raise_if_full, reason
from conr.report.fonts import drawable
from conr.report.page import Report, write_page
from conr.report.published import Benchmark, beside
from conr.text import printable

NEARLY_EMPTY = 0.1  # share of the mean size below which a cluster is worth a warning
NAMED = 10  # clusters or files that a note names
NO_LABELS = (
    "There are no labels, so accuracy cannot be known: silhouette and size entropy describe the clusters instead."
)
PARTS_OF_A_DATA_SET = frozenset(
    ["train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval", "evaluation", "unlabeled"]
)

Logs = tuple[list[dict[str, float]], list[dict[str, float]]]


def draw_map(drawings: Drawings, positions: NDArray[np.float32] | None, result: Evaluation) -> None:
    """Draw the map from what `embedding_map` found."""
    if positions is None:
        drawings.notes.append("There is no map of the images: their embeddings are all (nearly) equal.")
        return
    clusters = result.assignment.clusters
    caption = "All images, neighbors side by side (t-SNE)"
    drawings.add("map", caption, lambda: figures.map_figure(positions, clusters))


def draw_figures(drawings: Drawings, result: Evaluation, store: Store, logs: Logs, gallery: int) -> None:
    """Draw the figures of a seed: gallery, cluster sizes, confusion, and training from the logs of both stages."""
    order = [members[:gallery] for members in result.typical]
    caption = "The most typical images of each cluster"
    drawings.add("gallery", caption, lambda: figures.gallery_figure(store.images, order))
    caption = "How many images each cluster holds"
    drawings.add("cluster_sizes", caption, lambda: figures.sizes_figure(result.sizes))
    agreement = scored_agreement(result, store)
    if agreement is not None:
        drawings.add("confusion", "Labels against clusters", lambda: _confusion_figure(agreement, store))
        names = [store.class_name(label) for label in agreement.classes.tolist()]
        if any(drawable(name) != printable(name) for name in names):
            drawings.notes.append(
                "Some names in the figures have characters that no font here can draw; they are written as codes. "
                "Install a font that has them, such as Noto Sans CJK."
            )
    if any(logs):
        drawings.add("training", "Training, epoch by epoch", lambda: figures.training_figure(*logs))


def _confusion_figure(agreement: Agreement, store: Store) -> Figure:
    """Matched clusters in the order of their classes, the others behind them."""
    matching, last = agreement.matching, len(agreement.classes)
    rows = {cluster: int(np.searchsorted(agreement.classes, label)) for cluster, label in matching.items()}
    columns = sorted(agreement.numbers.tolist(), key=lambda cluster: (rows.get(cluster, last), cluster))
    table = agreement.table[:, np.searchsorted(agreement.numbers, columns)]
    names = [store.class_name(label) for label in agreement.classes.tolist()]
    return figures.confusion_figure(table, names, columns)


def scored_agreement(result: Evaluation, store: Store) -> Agreement | None:
    """Labels against clusters of the images that are scored; None with fewer than two classes among them."""
    if store.labels is None:
        return None
    labels, clusters = store.labels[store.scored], result.assignment.clusters[store.scored]
    known = labels >= 0
    return Agreement(labels[known], clusters[known]) if len(np.unique(labels[known])) > 1 else None


def cluster_names(result: Evaluation, store: Store) -> list[str]:
    """For each cluster the class that the Hungarian matching gives it, or its number."""
    agreement = scored_agreement(result, store)
    matching = {} if agreement is None else agreement.matching
    return [
        store.class_name(matching[cluster]) if cluster in matching else f"cluster {cluster}"
        for cluster in range(len(result.sizes))
    ]


def write_report(
    path: Path,
    results: Results,
    store: Store,
    parameters: EvaluateStage,
    precision: str,
    drawings: Drawings,
    extras: Extras = NO_EXTRAS,
) -> list[str]:
    """Write the page, or one without map, figures and clusters where that fails; returns the notes for the summary."""
    notes = [*findings(results.first, store), *drawings.notes]
    try:
        write_page(compose_report(results, store, parameters, precision, notes, drawings.captions, extras), path)
    except Exception as error:
        raise_if_full(error)
        notes.append(f"The page is incomplete: it could not be made ({reason(error)}). The tables are whole.")
        write_page(Report(f"Clusters of {store.manifest.source}", [], results.rows(), notes, [], []), path)
    return notes


def compose_report(
    results: Results,
    store: Store,
    parameters: EvaluateStage,
    precision: str,
    notes: Sequence[str],
    captions: list[tuple[str, Path]],
    extras: Extras = NO_EXTRAS,
) -> Report:
    """All that the page shows."""
    manifest, final = store.manifest, results.first
    facts = [
        ("images", f"{manifest.count:,}"),
        ("image size", f"{manifest.image_size}×{manifest.image_size}"),
        ("clusters", str(parameters.clusters)),
        *([("clustering", extras.method)] if extras.method else []),
        ("precision of the encoder", precision),
        ("skipped files", f"{len(manifest.skipped):,}"),
        ("seed" if len(results.finetuned) == 1 else "seeds", ", ".join(map(str, results.finetuned))),
    ]
    if manifest.protocol != "all" or manifest.score_start > 0:
        facts.append(("trained on", f"{manifest.train_count:,} images"))
        facts.append(("scored on", f"{manifest.count - manifest.score_start:,} images"))
    published, differences = beside(benchmark(manifest, parameters.number))
    notes = [seeds_note(results), *notes]
    if store.labels is not None:
        notes.append("Labels were used for scores only.")
    if differences:
        notes.append(f"Published numbers are not comparable with this run: {'; '.join(differences)}.")
    return Report(
        title=f"Clusters of {manifest.source}",
        facts=facts,
        scores=results.rows(),
        notes=notes,
        figures=captions,
        clusters=cards(final, store, parameters.evaluate.gallery),
        published=published,
        map=image_map(final.assignment, store, extras),
        names=extras.names,
        result=extras.result,
        choice=extras.choice,
        groups=groups_to_check(final.assignment, store),
        skipped=skipped_by_reason(manifest),
    )


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


def summary(workspace: Workspace, results: Results, precision: str, notes: Sequence[str]) -> str:
    """The scores as text, the notes, and where the results are."""
    rows = results.rows()
    keys = [key for key in TABLE if any(key in row for row in rows.values())]
    table = [["", *(SCORES[key].title for key in keys)]]
    table += [[name, *(f"{row[key]:z.3f}" if key in row else "–" for key in keys)] for name, row in rows.items()]
    lines = [*aligned(table), "", seeds_note(results), *notes]
    if precision != "float32":
        key = "extract.precision" if precision == "int8" else "precision"
        lines.append(f"All features come from {precision} encoders ({key}).")
    lines += [
        "",
        f"clusters     {len(results.first.sizes)}, by {METHODS[results.method]}",
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


def findings(result: Evaluation, store: Store) -> list[str]:
    """What is to be known of labels, images and clusters before the scores are believed, a sentence or two each."""
    manifest, sizes = store.manifest, result.sizes
    notes = [*_about_labels(store)]
    filled = np.count_nonzero(sizes)
    if filled == 1:
        notes.append(
            "The embeddings of all images are (nearly) equal: the images are, or the features have collapsed (see the "
            "feature std in the training logs)."
        )
    if filled < len(sizes):
        last = len(sizes) - 1
        empty = f"Cluster {last} is empty" if filled == last else f"Clusters {filled} to {last} are empty"
        notes.append(f"{empty}: there seem to be fewer different images than clusters; lower clusters.")
    small = [cluster for cluster in range(filled) if sizes[cluster] < NEARLY_EMPTY * sizes.mean()]
    if small:
        named = listed([f"{cluster} ({sizes[cluster]:,})" for cluster in small])
        notes.append(f"These clusters are nearly empty (images): {named}. There may be fewer groups than clusters.")
    return [*notes, *_about_images(manifest)]


def _about_images(manifest: Manifest) -> Iterator[str]:
    """Images that hide a fault of the source: of a single color, and those that equal another one."""
    if manifest.blank:
        names = listed([manifest.files[image] for image in manifest.blank])
        yield f"Images of a single color: {len(manifest.blank):,}: {names}."
    if manifest.duplicates:
        pairs = [f"{manifest.files[image]} = {manifest.files[first]}" for image, first in manifest.duplicates]
        yield f"Images that equal an earlier one: {len(pairs):,}: {listed(pairs)}."


def _about_labels(store: Store) -> Iterator[str]:
    """What the labels can say about the clusters."""
    if store.labels is None:
        yield NO_LABELS
        return
    labels = store.labels[store.scored]
    known = labels[labels >= 0]
    names = [store.class_name(label) for label in np.unique(known).tolist()]
    if not names:
        yield "No image that is scored has a label, so accuracy cannot be known."
    elif len(names) == 1:
        yield f"All labels are “{names[0]}”: with one class there is no accuracy, NMI or ARI."
    elif {name.lower() for name in names} <= PARTS_OF_A_DATA_SET:
        yield (
            f"The labels ({listed(names)}) are parts of a data set, not classes: the scores against them mean nothing. "
            "Set prepare.labels: none, or use prepare.labels: parent if the classes are folders inside them."
        )
    elif len(names) == len(known):
        yield "Every image has a label of its own: the scores against labels mean nothing."


def listed(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")
