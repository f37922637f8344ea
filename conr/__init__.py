"""Cluster images without labels: Contextually Affinitive Neighborhood Refinery (ConNR, NeurIPS 2023).

The names below are the public interface; each is loaded when it is first used.

>>> result = conr.cluster(images, clusters=3, parameters=quick)
>>> result.assignments.shape, result.embeddings.shape
((60,), (60, 16))
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from conr.api import Result, cluster
    from conr.clustering.choose import Proposal, propose_clusters
    from conr.clustering.compactness import choose_method
    from conr.clustering.graph import Clustering, graph_clusters
    from conr.clustering.kmeans import kmeans
    from conr.clustering.votes import assign_by_neighbors
    from conr.errors import UserError
    from conr.evaluation.agreement import label_scores
    from conr.neighbors.conaff import conaff
    from conr.neighbors.graph import conaff_graph
    from conr.neighbors.settings import ConAff
    from conr.observer import Observer
    from conr.parameters import Parameters
    from conr.pipeline.presets import load_preset
    from conr.pipeline.workspace import Workspace
    from conr.training.weights import ModelSpec

_HOMES = {
    "Clustering": "clustering.graph",
    "ConAff": "neighbors.settings",
    "ModelSpec": "training.weights",
    "Observer": "observer",
    "Parameters": "parameters",
    "Proposal": "clustering.choose",
    "Result": "api",
    "UserError": "errors",
    "Workspace": "pipeline.workspace",
    "assign_by_neighbors": "clustering.votes",
    "choose_method": "clustering.compactness",
    "cluster": "api",
    "conaff": "neighbors.conaff",
    "conaff_graph": "neighbors.graph",
    "graph_clusters": "clustering.graph",
    "kmeans": "clustering.kmeans",
    "label_scores": "evaluation.agreement",
    "load_preset": "pipeline.presets",
    "propose_clusters": "clustering.choose",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
