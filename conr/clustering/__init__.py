"""Clusters of features."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conr.clustering.choose import Proposal, propose_clusters

_HOMES = {"Proposal": "choose", "propose_clusters": "choose"}
__all__ = ["Proposal", "propose_clusters"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
