"""The neighborhoods that ConNR starts from, drawn for evaluate: their purity (Fig. 2), and examples (Fig. 1b)."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from conr.data.store import Store
from conr.evaluation.results import Results
from conr.files import write_table
from conr.neighbors.study import PurityCurves, choose_queries, contexts, purity_curves, retrieved
from conr.parameters import EvaluateStage
from conr.report import paper_figures
from conr.report.drawings import Drawings

COLUMNS = ("neighbors", "local", "conaff", "conaff_filtered")


def draw_neighbors(
    drawings: Drawings,
    plots: Path,
    pretrained: NDArray[np.float32],
    results: Results,
    store: Store,
    parameters: EvaluateStage,
) -> None:
    """Draw both figures where ConNR has searched for neighbors; write the table behind the curves, perhaps empty.

    Args:
        drawings: where to.
        plots: the folder of tables.
        pretrained: (N, D) embeddings before ConNR: there it starts to search for neighbors.
        results: with their clusters, for the boundary filter.
        store: images, and labels for the verdicts.
        parameters: those of ConAff, of the filter, and evaluate.context.
    """
    train = slice(store.manifest.train_count)
    features, labels, evaluation = pretrained[train], store.training_labels, results.pretrained
    context, seed = parameters.evaluate.context, parameters.seed
    rows: list[list[object]] = []

    def purity(labels: NDArray[np.int64]) -> Figure:
        curves = purity_curves(
            features,
            labels,
            evaluation.centroids,
            evaluation.assignment.clusters[train],
            fr=parameters.fr,
            context=context,
            seed=seed,
            settings=parameters.conaff,
        )
        rows.extend(_rows(curves))
        return paper_figures.purity_figure(curves)

    def neighbors() -> Figure:
        group = contexts(len(features), context, seed)[0]
        judged = None if labels is None else labels[group]
        queries = choose_queries(features[group], judged, settings=parameters.conaff)
        found = retrieved(features[group], judged, queries, settings=parameters.conaff)
        names = None if judged is None else [store.class_name(int(judged[query])) for query in queries]
        return paper_figures.neighbors_figure(store.training_images[group], found, names)

    if results.refined and labels is not None and (labels >= 0).any() and len(evaluation.centroids) > 1:
        known = labels
        drawings.add("neighbor_purity", "Purity of the neighbors that ConNR starts from", lambda: purity(known))
    write_table(plots / "neighbor_purity.csv", COLUMNS, rows)
    if results.refined:
        drawings.add("neighbors", "Where the two neighborhoods that ConNR could start from differ most", neighbors)


def _rows(curves: PurityCurves) -> list[list[object]]:
    """The table for `dvc plots`; a K without any known neighbor has no row."""
    values = np.stack([curves.local, curves.conaff, curves.conaff_filtered], axis=1)
    pairs = zip(curves.neighbors.tolist(), values, strict=True)
    return [[number, *(f"{value:.4f}" for value in row)] for number, row in pairs if np.isfinite(row).all()]
