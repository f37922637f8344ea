"""The neighborhoods that ConNR starts from, drawn for evaluate: their purity (Fig. 2), and examples (Fig. 1b)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.data.store import Store
from conr.evaluation.evaluate import Evaluation
from conr.files import write_table
from conr.neighbors.study import PurityCurves, choose_queries, contexts, purity_curves, retrieved
from conr.parameters import EvaluateStage
from conr.pipeline.workspace import Workspace
from conr.report import paper_figures
from conr.report.figures import save

COLUMNS = ("neighbors", "local", "conaff", "conaff_filtered")


def draw_neighbors(
    workspace: Workspace,
    pretrained: NDArray[np.float32],
    evaluation: Evaluation,
    store: Store,
    parameters: EvaluateStage,
) -> list[tuple[str, Path]]:
    """Draw both figures and write the table behind the curves; returns (caption, file) of each figure.

    Args:
        workspace: where to.
        pretrained: (N, D) embeddings before ConNR: there it starts to search for neighbors.
        evaluation: their clusters, for the boundary filter.
        store: images, and labels for the verdicts.
        parameters: those of ConAff, of the filter, and evaluate.context.
    """
    train = slice(store.manifest.train_count)
    features, labels = pretrained[train], store.training_labels
    context, seed = parameters.evaluate.context, parameters.seed
    drawn, curves = [], None
    if labels is not None and (labels >= 0).any():
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
        drawn.append(("Purity of the neighbors that ConNR starts from", workspace.figures / "neighbor_purity.png"))
        save(paper_figures.purity_figure(curves), drawn[-1][1])
    write_table(workspace.plots / "neighbor_purity.csv", COLUMNS, [] if curves is None else _rows(curves))

    group = contexts(len(features), context, seed)[0]
    judged = None if labels is None else labels[group]
    queries = choose_queries(features[group], judged, settings=parameters.conaff)
    found = retrieved(features[group], judged, queries, settings=parameters.conaff)
    names = None if judged is None else [store.class_name(int(judged[query])) for query in queries]
    caption = "Where the two neighborhoods that ConNR could start from differ most"
    drawn.append((caption, workspace.figures / "neighbors.png"))
    save(paper_figures.neighbors_figure(store.training_images[group], found, names), drawn[-1][1])
    return drawn


def _rows(curves: PurityCurves) -> list[list[object]]:
    """The table for `dvc plots`; a K without any known neighbor has no row."""
    values = np.stack([curves.local, curves.conaff, curves.conaff_filtered], axis=1)
    pairs = zip(curves.neighbors.tolist(), values, strict=True)
    return [[number, *(f"{value:.4f}" for value in row)] for number, row in pairs if np.isfinite(row).all()]
