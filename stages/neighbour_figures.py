"""The neighbourhoods that ConNR starts from, drawn for evaluate: their purity (Fig. 2), and examples (Fig. 1b)."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.data.store import Store
from conr.errors import UserError
from conr.evaluation import Evaluation
from conr.neighbour_study import Affinity, PurityCurves, choose_queries, contexts, purity_curves, retrieved
from conr.parameters import EvaluateStage
from conr.report import paper_figures
from stages.paths import FIGURES, PLOTS

COLUMNS = ("neighbours", "local", "conaff", "conaff_filtered")


def check_context(parameters: EvaluateStage, store: Store) -> None:
    """Check that neighbours can be searched in a context, before minutes of k-means.

    Raises:
        UserError: k1 is larger than the number of images in a context.
    """
    context, size = parameters.evaluate.context, min(parameters.evaluate.context, store.manifest.train_count)
    if parameters.k1 > size:
        raise UserError(
            f"k1 = {parameters.k1} neighbours cannot be found among {size} images (evaluate.context = {context}, "
            f"{store.manifest.train_count:,} images to train on); raise evaluate.context or lower k1"
        )


def draw_neighbours(
    pretrained: NDArray[np.float32], evaluation: Evaluation, store: Store, parameters: EvaluateStage
) -> list[tuple[str, Path]]:
    """Draw both figures and write the table behind the curves; returns (caption, file) of each figure.

    Args:
        pretrained: (N, D) embeddings before ConNR: there it starts to search for neighbours.
        evaluation: their clusters, for the boundary filter.
        store: images, and labels for the verdicts.
        parameters: those of ConAff, of the filter, and evaluate.context.
    """
    train = slice(store.manifest.train_count)
    features, labels = pretrained[train], store.training_labels
    affinity = Affinity(
        k1=parameters.k1,
        k2=parameters.k2,
        alpha=parameters.neighbourhood.alpha,
        layers=parameters.neighbourhood.layers,
        symmetrise=parameters.neighbourhood.symmetrise,
        normalise=parameters.neighbourhood.normalise,
    )
    drawn = []
    curves = None
    if labels is not None and (labels >= 0).any():
        curves = purity_curves(
            features,
            labels,
            evaluation.centroids,
            evaluation.placement.assignments[train],
            fr=parameters.fr,
            context=parameters.evaluate.context,
            seed=parameters.seed,
            **affinity,
        )
        drawn.append(("Purity of the neighbours that ConNR starts from", FIGURES / "neighbour_purity.png"))
        paper_figures.neighbour_purity(curves, drawn[-1][1])
    _write_curves(curves)

    group = contexts(len(features), parameters.evaluate.context, parameters.seed)[0]
    judged = None if labels is None else labels[group]
    queries = choose_queries(features[group], judged, **affinity)
    found = retrieved(features[group], judged, queries, **affinity)
    drawn.append(("Where the two neighbourhoods that ConNR could start from differ most", FIGURES / "neighbours.png"))
    names = None if judged is None else [_name(store, judged[query]) for query in queries]
    paper_figures.neighbours(store.training_images[group], found, drawn[-1][1], names)
    return drawn


def _write_curves(curves: PurityCurves | None) -> None:
    """The table for `dvc plots`; a K without any known neighbour has no row, and without labels there is none."""
    with (PLOTS / "neighbour_purity.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        if curves is None:
            return
        values = np.stack([curves.local, curves.conaff, curves.conaff_filtered], axis=1)
        for neighbours, row in zip(curves.neighbours, values, strict=True):
            if np.isfinite(row).all():
                writer.writerow([neighbours, *(f"{value:.4f}" for value in row)])


def _name(store: Store, label: int) -> str:
    return store.manifest.class_names[label] if label >= 0 else ""
