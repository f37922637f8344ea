"""Clusters of features."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conr.clustering.choose import Proposal, propose_clusters
    from conr.clustering.compactness import choose_method
    from conr.clustering.graph import Clustering, graph_clusters
    from conr.clustering.votes import assign_by_neighbors

_HOMES = {
    "Clustering": "graph",
    "Proposal": "choose",
    "assign_by_neighbors": "votes",
    "choose_method": "compactness",
    "graph_clusters": "graph",
    "propose_clusters": "choose",
}
__all__ = ["Clustering", "Proposal", "assign_by_neighbors", "choose_method", "graph_clusters", "propose_clusters"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
